/*
 * The plugin interface of Pollux for C and every other language. Generated from abi/src; a test keeps it in step:
 *     POLLUX_BLESS=1 cargo test -p pollux-abi --test header
 * A plugin exports one function:
 *     const PolluxPluginDescriptor *pollux_plugin(void);
 */

#ifndef POLLUX_H
#define POLLUX_H

#include <stddef.h>
#include <stdint.h>

// Log levels of [`HostV1::log`], as in `syslog(3)`'s order of urgency.
#define POLLUX_LOG_ERROR 1

// A warning: service goes on.
#define POLLUX_LOG_WARN 2

// A message that an operator wants once per start.
#define POLLUX_LOG_INFO 3

// For the plugin's author.
#define POLLUX_LOG_DEBUG 4

// For the plugin's author, in bulk.
#define POLLUX_LOG_TRACE 5

// Version of [`PluginDescriptor`] itself. It grows only if the descriptor ever has to change.
#define POLLUX_PLUGIN_VERSION 1

// Read `length` bytes at `offset` into the segments.
#define POLLUX_BLOCK_READ 0

// Write `length` bytes from the segments to `offset`.
#define POLLUX_BLOCK_WRITE 1

// Make all writes durable that completed before this request was submitted, whichever queue of the instance they went
// through.
#define POLLUX_BLOCK_FLUSH 2

// The range's content is no longer needed. Reads of it may return anything until it is written again.
#define POLLUX_BLOCK_DISCARD 3

// Make the range read as zeroes.
#define POLLUX_BLOCK_WRITE_ZEROES 4

// On writes and write-zeroes: the data is durable when the request completes (force unit access). Every backend that
// takes writes must heed it, also one that offers no flush.
#define POLLUX_BLOCK_FUA 1

// On write-zeroes: the backend may deallocate the range.
#define POLLUX_BLOCK_UNMAP 2

// In [`BlockInfo::flags`]: writes fail with EROFS.
#define POLLUX_BLOCK_INFO_READ_ONLY 1

// In [`BlockInfo::flags`]: completed writes may be lost with the power until a flush. For the operator's information:
// the host flushes in any case.
#define POLLUX_BLOCK_INFO_VOLATILE_CACHE 2

// In [`BlockOpen::flags`]: never write, even if the file would allow it.
#define POLLUX_BLOCK_OPEN_READ_ONLY 1

// In [`BlockOpen::flags`]: the instance is only described and closed again. Take no lock and change nothing.
#define POLLUX_BLOCK_OPEN_PROBE 2

// Borrowed UTF-8 text, not terminated. Valid during the call that passes it, unless said otherwise.
typedef struct PolluxText {
  // First byte. May be null when `length` is 0.
  const uint8_t *data;
  // Length in bytes.
  size_t length;
} PolluxText;

// The host's services, as a table of functions. It stays valid until the process ends.
typedef struct PolluxHostV1 {
  // Size of this structure in bytes.
  uint32_t struct_size;
  // Lines above this level need not be passed to `log`: the host would drop them.
  uint32_t log_level;
  // The first argument of each function.
  void *context;
  // Passes one log line. `target` names its origin inside the plugin. `[any thread]`, never in `submit` or `poll`
  // of a healthy request: it may block.
  void (*log)(void *context, uint32_t level, struct PolluxText target, struct PolluxText message);
  // Says that what `describe` answers has changed, such as the capacity. `[any thread]`. A host that can change a
  // running device asks again, on its control thread; any other does so when the medium is next opened.
  void (*changed)(void *context);
  // Zero.
  size_t reserved[4];
} PolluxHostV1;

// How to open an instance.
typedef struct PolluxBlockOpen {
  // Services for this instance: log lines carry its name. Valid until `close` returns.
  const struct PolluxHostV1 *host;
  // The instance's name in the configuration, such as `disk0`.
  struct PolluxText name;
  // The `options` of the configuration as a JSON object.
  struct PolluxText options;
  // `POLLUX_BLOCK_OPEN_READ_ONLY`, `POLLUX_BLOCK_OPEN_PROBE`.
  uint32_t flags;
  // Zero.
  uint32_t reserved0;
  // Zero.
  uint64_t reserved[4];
} PolluxBlockOpen;

// A buffer of the caller's that the callee fills with UTF-8 text, such as the reason of a failure.
typedef struct PolluxTextBuffer {
  // First byte.
  uint8_t *data;
  // Room in bytes.
  size_t capacity;
  // Length of the text in bytes. More than `capacity`: only so much of it was written. The caller sets it to 0.
  size_t length;
} PolluxTextBuffer;

// What a backend is like. All sizes are in bytes; 0 stands for "no limit" or "unknown" unless said otherwise.
typedef struct PolluxBlockInfo {
  // Size of the medium. A rest beyond a whole logical block is not offered to the guest.
  uint64_t capacity;
  // With `identity_object`, names the medium (such as `st_dev` and `st_ino`), so that the host notices that two
  // devices write to the same one. Both 0: none.
  uint64_t identity_device;
  // See `identity_device`.
  uint64_t identity_object;
  // Longest discard; 0, or at least a logical block.
  uint64_t maximum_discard;
  // Longest write-zeroes; 0, or at least a logical block.
  uint64_t maximum_write_zeroes;
  // Unit of addressing: a power of two, at least 512.
  uint32_t logical_block_size;
  // Unit that is written without reading first: a power of two multiple of the logical block.
  uint32_t physical_block_size;
  // Smallest transfer without a penalty.
  uint32_t minimum_io_size;
  // Best transfer size.
  uint32_t optimal_io_size;
  // Bit `1 << operation` for each operation offered.
  uint32_t operations;
  // `POLLUX_BLOCK_INFO_READ_ONLY`, `POLLUX_BLOCK_INFO_VOLATILE_CACHE`.
  uint32_t flags;
  // Longest read or write; 0, or at least 4096 and a logical block.
  uint32_t maximum_transfer;
  // Most segments of one request.
  uint32_t maximum_segments;
  // Preferred alignment of discards; a multiple of the logical block.
  uint32_t discard_alignment;
  // Most queues; 0 for any number.
  uint32_t maximum_queues;
  // Zero.
  uint64_t reserved[8];
} PolluxBlockInfo;

// A region of guest memory in the host's address space. Segments lie in such regions, mostly: the host may also pass
// memory of its own.
typedef struct PolluxMemoryRegion {
  // Guest-physical address of the first byte.
  uint64_t guest_address;
  // Host address of the first byte.
  uint8_t *base;
  // Length in bytes.
  size_t length;
  // File that backs the region, or -1. The host keeps it open until the region is removed.
  int32_t file;
  // Zero: the region may be read and written.
  uint32_t flags;
  // Where in the file the region begins, in bytes.
  uint64_t file_offset;
  // Page size of the mapping in bytes: 4096, or that of the huge pages.
  uint64_t page_size;
  // Zero.
  uint64_t reserved[2];
} PolluxMemoryRegion;

// What `queue_open` answers.
typedef struct PolluxBlockQueueHandle {
  // The first argument of the queue's functions.
  void *queue;
  // A file descriptor that becomes readable when an armed queue has completions, or -1. The plugin's; valid until
  // `queue_close`. The host only waits on it and never reads it: the plugin makes it unreadable again, in `arm`
  // with 0 or in `poll`.
  int32_t wake_fd;
  // Zero.
  uint32_t reserved0;
  // Zero.
  uint64_t reserved[2];
} PolluxBlockQueueHandle;

// A range of host memory, laid out as `struct iovec`. It usually lies in guest memory, which the guest may change at
// any time.
typedef struct PolluxSegment {
  // First byte.
  uint8_t *base;
  // Length in bytes.
  size_t length;
} PolluxSegment;

// One request: 64 bytes. The host has checked it: the operation is one that the backend offers, the range lies within
// the capacity and on logical blocks and within the limits of [`BlockInfo`], and the segments' lengths add up to
// `length`. Segments may have any address and any length: a backend that needs them aligned copies where they are
// not.
//
// The record itself is valid only during the call: copy what is needed later. A request that was not taken comes
// again, with another token.
typedef struct PolluxBlockRequest {
  // `POLLUX_BLOCK_READ` and so on.
  uint32_t operation;
  // `POLLUX_BLOCK_FUA`, `POLLUX_BLOCK_UNMAP`.
  uint32_t flags;
  // Names the request in its completion. Unique among those in flight.
  uint64_t token;
  // First byte on the medium.
  uint64_t offset;
  // Length in bytes; 0 for a flush.
  uint64_t length;
  // The data of a read or write, valid until the request completes (the array as well as the memory).
  const struct PolluxSegment *segments;
  // Number of segments.
  uint32_t segment_count;
  // Zero.
  uint32_t reserved0;
  // Zero.
  uint64_t reserved[2];
} PolluxBlockRequest;

// The end of one request: 16 bytes.
typedef struct PolluxBlockCompletion {
  // The request's token.
  uint64_t token;
  // 0, or a negative errno: EIO, ENOSPC, EROFS, …
  int32_t result;
  // Zero.
  uint32_t reserved;
} PolluxBlockCompletion;

// Where a queue puts completions: valid during the call. The host provides room for every request in flight, so it
// never runs full.
typedef struct PolluxBlockCompletions {
  // The first entry.
  struct PolluxBlockCompletion *entries;
  // Number of entries there is room for.
  uint32_t capacity;
  // Entries filled. The callee appends and adds.
  uint32_t count;
} PolluxBlockCompletions;

// The functions of `block/1`. None may be null.
typedef struct PolluxBlockV1 {
  // Size of this structure in bytes.
  uint32_t struct_size;
  // Zero.
  uint32_t reserved0;
  // Opens an instance. `[control]`
  int32_t (*open)(const struct PolluxBlockOpen *arguments, void **instance, struct PolluxTextBuffer *error);
  // Closes it. All queues are closed before. `[control]`
  void (*close)(void *instance);
  // Fills `info`. May be called at any time. `[control]`
  int32_t (*describe)(void *instance, struct PolluxBlockInfo *info);
  // Fills `text` with a JSON object of the plugin's own counters. A `length` beyond the capacity says that it was
  // cut. `[control]`
  int32_t (*statistics)(void *instance, struct PolluxTextBuffer *text);
  // Announces a region of guest memory, so that the plugin may register or map it for DMA. Memory that another
  // process may take pages out of, such as that of a vhost-user front end, is not announced. `[control]`
  int32_t (*memory_add)(void *instance, const struct PolluxMemoryRegion *region, struct PolluxTextBuffer *error);
  // Takes a region back. `[control]`
  void (*memory_remove)(void *instance, const struct PolluxMemoryRegion *region);
  // Makes queue `index` for at most `depth` requests in flight. `[control]`
  int32_t (*queue_open)(void *instance,
                        uint32_t index,
                        uint32_t depth,
                        struct PolluxBlockQueueHandle *handle,
                        struct PolluxTextBuffer *error);
  // The calling thread owns the queue from now on. Called once for each `queue_open`. `[worker]`
  int32_t (*queue_start)(void *queue, struct PolluxTextBuffer *error);
  // Takes requests in order, at most `count`, and returns how many it accepted: fewer means "full, offer the rest
  // later". Requests that complete at once may be added to `completions` right away. Negative: the queue has
  // failed. `[worker, started]`
  int32_t (*submit)(void *queue,
                    const struct PolluxBlockRequest *requests,
                    uint32_t count,
                    struct PolluxBlockCompletions *completions);
  // Adds what has completed to `completions`. Returns 0, or a negative errno: the queue has failed. `[worker,
  // started]`
  int32_t (*poll)(void *queue, struct PolluxBlockCompletions *completions);
  // With `armed` 1: the worker is about to sleep on `wake_fd`, so make it readable at the next completion; returns
  // 1 if there is one already and the worker must not sleep, or 0. Both a 1 and a wake-up may be needless, but
  // neither may be missing. With 0: the worker polls again. Called only if there is a `wake_fd`. `[worker,
  // started]`
  int32_t (*arm)(void *queue, uint32_t armed);
  // The worker gives the queue back. If the queue has failed, this first brings to an end what is in flight:
  // returning 0 says that nothing touches the memory of any request any more, since the guest will use it again.
  // Negative: that cannot be said; the host then keeps the queue and the memory for ever. `[worker, started]`
  int32_t (*queue_stop)(void *queue);
  // Frees the queue. `[control]`
  void (*queue_close)(void *queue);
} PolluxBlockV1;

// One interface of a plugin.
typedef struct PolluxInterface {
  // Its name and number, such as `block/1`. Static.
  struct PolluxText name;
  // Its table of functions, such as `BlockV1`. Static.
  const void *table;
} PolluxInterface;

// What a plugin is: its name, its version and its interfaces. A static of the plugin's.
typedef struct PolluxPluginDescriptor {
  // Size of this structure in bytes.
  uint32_t struct_size;
  // [`POLLUX_PLUGIN_VERSION`].
  uint32_t descriptor_version;
  // Short name, such as `uring`. Log lines carry it. Static.
  struct PolluxText name;
  // The plugin's own version, such as `0.1.0`. Static.
  struct PolluxText version;
  // The first of the interfaces. Static.
  const struct PolluxInterface *interfaces;
  // Number of interfaces.
  size_t interface_count;
  // Called once, before everything else, with services that stay valid for ever. Returns 0, or a negative errno.
  // `[control]`
  int32_t (*initialize)(const struct PolluxHostV1 *host);
  // Zero.
  size_t reserved[4];
} PolluxPluginDescriptor;

#endif  /* POLLUX_H */
