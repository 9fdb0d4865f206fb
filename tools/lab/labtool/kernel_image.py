"""The ELF kernel inside a bzImage.

QEMU and other monitors enter it by its PVH entry at once, without the decompressor, which takes
over a second in a nested guest."""
import lzma
import struct
import subprocess
import zlib

from . import cache
from .command import Fail


def extract_vmlinux(bzimage):
    """The ELF file in a bzImage (Linux boot protocol: Documentation/arch/x86/boot.rst)."""
    data = cache.read(bzimage)
    if data[0x202:0x206] != b"HdrS":
        raise Fail(bzimage + ": not a bzImage")
    payload_offset, payload_length = struct.unpack_from("<II", data, 0x248)
    setup_sectors = data[0x1f1] or 4
    start = (setup_sectors + 1) * 512 + payload_offset
    kernel = decompress(data[start:start + payload_length], bzimage)
    if kernel[:4] != b"\x7fELF":
        raise Fail(bzimage + ": no ELF kernel inside")
    return kernel


def decompress(data, name):
    magic = data[:4]
    # Bytes that follow the compressed stream are the kernel's own business: they are ignored.
    if magic == b"\xfd7zX":
        return lzma.LZMADecompressor().decompress(data)
    if magic == b"\x1f\x8b\x08\x00":
        return zlib.decompressobj(31).decompress(data)
    tool = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}.get(magic)
    if not tool:
        raise Fail("%s: unknown compression %s" % (name, magic.hex()))
    return subprocess.run([tool, "-dcq"], input=data, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL).stdout
