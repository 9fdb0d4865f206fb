/*
 * A disk of 64 MiB in memory: the smallest plugin in C that keeps data. pollux.h says who calls each function, when and
 * on which thread. It has no options.
 */
#include "pollux.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CAPACITY (64u << 20)
#define TEXT(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}

struct disk {
  /* NULL in a probe. Several queues, on several threads, use it at once, as they do a disk: what requests that overlap
   * leave behind is for the guest to avoid. */
  uint8_t *data;
  bool read_only;
  _Atomic uint64_t bytes_read;
  _Atomic uint64_t bytes_written;
};

/* Writes as much of a text as there is room for, and says how long it is. */
static void say(PolluxTextBuffer *buffer, const char *text) {
  size_t length = strlen(text);
  memcpy(buffer->data, text, length < buffer->capacity ? length : buffer->capacity);
  buffer->length = length;
}

static int32_t disk_open(const PolluxBlockOpen *arguments, void **instance, PolluxTextBuffer *error) {
  /* The options are a JSON object. This disk has none: leave them out. */
  if (arguments->options.length != 2 || memcmp(arguments->options.data, "{}", 2) != 0) {
    say(error, "options: this disk has none: leave options out");
    return -EINVAL;
  }
  struct disk *disk = calloc(1, sizeof *disk);
  if (disk == NULL)
    return -ENOMEM;
  disk->read_only = arguments->flags & POLLUX_BLOCK_OPEN_READ_ONLY;
  /* A probe only asks what the disk is like. */
  if (!(arguments->flags & POLLUX_BLOCK_OPEN_PROBE)) {
    disk->data = calloc(1, CAPACITY);
    if (disk->data == NULL) {
      free(disk);
      say(error, "no memory for 64 MiB");
      return -ENOMEM;
    }
  }
  *instance = disk;
  return 0;
}

static void disk_close(void *instance) {
  struct disk *disk = instance;
  free(disk->data);
  free(disk);
}

static int32_t disk_describe(void *instance, PolluxBlockInfo *info) {
  const struct disk *disk = instance;
  memset(info, 0, sizeof *info);
  info->capacity = CAPACITY;
  info->logical_block_size = 512;
  info->physical_block_size = 512;
  info->operations = 1u << POLLUX_BLOCK_READ | 1u << POLLUX_BLOCK_FLUSH;
  if (disk->read_only)
    info->flags = POLLUX_BLOCK_INFO_READ_ONLY;
  else
    info->operations |= 1u << POLLUX_BLOCK_WRITE | 1u << POLLUX_BLOCK_WRITE_ZEROES;
  return 0;
}

static int32_t disk_statistics(void *instance, PolluxTextBuffer *text) {
  struct disk *disk = instance;
  char json[128];
  snprintf(json, sizeof json, "{\"bytes_read\": %" PRIu64 ", \"bytes_written\": %" PRIu64 "}",
           atomic_load_explicit(&disk->bytes_read, memory_order_relaxed),
           atomic_load_explicit(&disk->bytes_written, memory_order_relaxed));
  say(text, json);
  return 0;
}

/* Guest memory need not be known: requests come with pointers. */
static int32_t disk_memory_add(void *instance, const PolluxMemoryRegion *region, PolluxTextBuffer *error) {
  (void)instance, (void)region, (void)error;
  return 0;
}

static void disk_memory_remove(void *instance, const PolluxMemoryRegion *region) {
  (void)instance, (void)region;
}

/* A queue of this disk has nothing of its own: each is the disk. */
static int32_t disk_queue_open(void *instance, uint32_t index, uint32_t depth, PolluxBlockQueueHandle *handle,
                               PolluxTextBuffer *error) {
  (void)index, (void)depth, (void)error;
  memset(handle, 0, sizeof *handle);
  handle->queue = instance;
  /* Requests complete in `submit`: nobody has to wait for one. */
  handle->wake_fd = -1;
  return 0;
}

static int32_t disk_queue_start(void *queue, PolluxTextBuffer *error) {
  (void)queue, (void)error;
  return 0;
}

/* Reads into the segments, or writes from them. They lie in guest memory, which the guest may change at any time: look
 * at a byte once. */
static void transfer(const PolluxBlockRequest *request, uint8_t *data) {
  for (uint32_t i = 0; i < request->segment_count; i++) {
    const PolluxSegment *segment = &request->segments[i];
    if (request->operation == POLLUX_BLOCK_READ)
      memcpy(segment->base, data, segment->length);
    else
      memcpy(data, segment->base, segment->length);
    data += segment->length;
  }
}

/* 0, or a negative errno. */
static int32_t serve(struct disk *disk, const PolluxBlockRequest *request) {
  /* The host has checked that this lies within the disk. */
  uint8_t *data = disk->data + request->offset;
  switch (request->operation) {
  case POLLUX_BLOCK_READ:
    transfer(request, data);
    atomic_fetch_add_explicit(&disk->bytes_read, request->length, memory_order_relaxed);
    return 0;
  case POLLUX_BLOCK_WRITE:
    if (disk->read_only)
      return -EROFS;
    transfer(request, data);
    atomic_fetch_add_explicit(&disk->bytes_written, request->length, memory_order_relaxed);
    return 0;
  case POLLUX_BLOCK_WRITE_ZEROES:
    if (disk->read_only)
      return -EROFS;
    memset(data, 0, request->length);
    return 0;
  case POLLUX_BLOCK_FLUSH:
    return 0;
  default:
    /* What is not offered does not come. */
    return -ENOTSUP;
  }
}

/* On the polling core: it must not block. */
static int32_t disk_submit(void *queue, const PolluxBlockRequest *requests, uint32_t count,
                           PolluxBlockCompletions *completions) {
  for (uint32_t i = 0; i < count; i++) {
    PolluxBlockCompletion *done = &completions->entries[completions->count++];
    memset(done, 0, sizeof *done);
    done->token = requests[i].token;
    done->result = serve(queue, &requests[i]);
  }
  /* All were taken. One that cannot be taken now, with those behind it, is offered again. */
  return (int32_t)count;
}

static int32_t disk_poll(void *queue, PolluxBlockCompletions *completions) {
  (void)queue, (void)completions;
  return 0;
}

/* Not called, as there is no wake_fd, but no function may be NULL. */
static int32_t disk_arm(void *queue, uint32_t armed) {
  (void)queue, (void)armed;
  return 0;
}

static int32_t disk_queue_stop(void *queue) {
  (void)queue;
  return 0;
}

static void disk_queue_close(void *queue) {
  (void)queue;
}

static int32_t initialize(const PolluxHostV1 *host) {
  (void)host;
  return 0;
}

static const PolluxBlockV1 block = {
    .struct_size = sizeof(PolluxBlockV1),
    .open = disk_open,
    .close = disk_close,
    .describe = disk_describe,
    .statistics = disk_statistics,
    .memory_add = disk_memory_add,
    .memory_remove = disk_memory_remove,
    .queue_open = disk_queue_open,
    .queue_start = disk_queue_start,
    .submit = disk_submit,
    .poll = disk_poll,
    .arm = disk_arm,
    .queue_stop = disk_queue_stop,
    .queue_close = disk_queue_close,
};

static const PolluxInterface interfaces[] = {{TEXT("block/1"), &block}};

static const PolluxPluginDescriptor descriptor = {
    .struct_size = sizeof(PolluxPluginDescriptor),
    .descriptor_version = POLLUX_PLUGIN_VERSION,
    .name = TEXT("cdisk"),
    .version = TEXT("0.1.0"),
    .interfaces = interfaces,
    .interface_count = sizeof interfaces / sizeof *interfaces,
    .initialize = initialize,
};

const PolluxPluginDescriptor *pollux_plugin(void);
const PolluxPluginDescriptor *pollux_plugin(void) {
  return &descriptor;
}
