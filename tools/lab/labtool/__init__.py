"""The lab: a VM with nested KVM for machines whose own /dev/kvm cannot boot stock guests.

cli            the command line
run            `lab run`: one VM, one command, its status
job            the shell script that runs the command inside the VM
drives         images as QEMU arguments
snapshot       boot once, restore afterwards
vm             one QEMU process and the lines to it
prepare        fill the cache: kernels, modules, busybox, QEMU
apt            the machine's own package sources, with lists of the lab's own
kernel_image   the ELF kernel inside a bzImage
kernel_modules the few modules worth keeping, slimmed, in load order
initramfs      images for L1 (the VM) and L2 (a guest in it); their scripts are in guest/
rootfs         `rootfs`: an ext4 image of an unmodified Debian system
cache          the cache folder, its locks and atomic writes
command        running other programs; the error that ends a run of the lab
"""
