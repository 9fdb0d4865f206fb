// load.c: writes a disk, reads it back and compares, for as long as it is told to.
//
//   load run DEVICE [workers=N] [rounds=N | until=FILE] [trim=1] [offset=BYTES] [size=BYTES]
//   load check DEVICE [workers=N] [trim=1] [offset=BYTES] [size=BYTES]
//
// Each worker is a process of its own on a processor of its own and has a slice of the disk. In a round it writes all of
// the slice in random order, several requests at a time and past the page cache, reads parts of it back meanwhile, flushes, and
// notes the round in the slice's first block, its header, which it flushes too. Every sector tells which one it is and the
// round that wrote it, so that a disk can be checked by a process that knows nothing of the one that wrote it: with a
// header that says N, each sector is of round N or N + 1. Round 0 is a disk of zeroes. `trim` also discards and zeroes.
//
// Prints "SYNCED N" when all workers have round N on the disk, "VERIFIED N" or "CHECKED N" at the end; or "LOAD FAILED: why".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SECTOR = 512, BLOCK = 4096, RUN_BLOCKS_MAX = 32, BATCH = 8, WORKERS_MAX = 64 };
#define MAGIC 0x706f6c6c75786c64ull
// What a block holds, besides the number of a round.
#define ZEROED 0xfffffffeu
#define UNKNOWN 0xffffffffu

// What all processes see.
static struct shared {
	volatile int stop;
	struct {
		volatile uint64_t synced, writes, reads, flushes, discards, zeroings;
	} worker[WORKERS_MAX];
} *shared;

// What was asked for.
static const char *device, *until_file;
static uint64_t workers = 4, rounds, trim, offset, size;

// This worker's slice, in blocks, and what each holds.
static int fd, number;
static uint64_t first_block, blocks;
static uint32_t *holds;
static aio_context_t aio;
// Only the device writes here, so that a live migration that misses what it writes is found out.
static uint8_t *read_buffer;
static uint64_t random_state;

struct run {
	uint64_t block, count;
};

static void fail(const char *format, ...) {
	char text[300];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	printf("LOAD FAILED: %s worker %d: %s\n", device, number, text);
	fflush(stdout);
	exit(1);
}

// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
static uint64_t mix(uint64_t value) {
	value += 0x9e3779b97f4a7c15ull;
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
	return value ^ (value >> 31);
}

static uint64_t random_below(uint64_t bound) {
	random_state++;
	return mix(random_state) % bound;
}

static void fill_sector(uint64_t *words, uint64_t sector, uint64_t round) {
	uint64_t seed = mix(sector) ^ mix(round << 32);
	if (round == 0) {
		memset(words, 0, SECTOR);
		return;
	}
	words[0] = sector;
	words[1] = round;
	for (int i = 2; i < SECTOR / 8; i++)
		words[i] = seed * (2 * i + 1) + (seed >> i);
}

// The round that wrote a sector; the process ends if none did.
static uint64_t round_of(const uint64_t *words, uint64_t sector) {
	uint64_t expected[SECTOR / 8], round = words[1];
	fill_sector(expected, sector, round);
	if (memcmp(expected, words, SECTOR) != 0) {
		int at = 0;
		while (expected[at] == words[at])
			at++;
		fail("sector %llu is damaged: words %llx %llx, word %d is %llx, not %llx", (unsigned long long)sector,
		     (unsigned long long)words[0], (unsigned long long)words[1], at, (unsigned long long)words[at],
		     (unsigned long long)expected[at]);
	}
	return round;
}

static void check_sectors(const uint8_t *data, uint64_t block, uint64_t lowest, uint64_t highest, int zeroes_too) {
	for (uint64_t i = 0; i < BLOCK / SECTOR; i++) {
		uint64_t sector = block * (BLOCK / SECTOR) + i;
		uint64_t round = round_of((const uint64_t *)(data + i * SECTOR), sector);
		if ((round < lowest || round > highest) && !(zeroes_too && round == 0))
			fail("sector %llu is of round %llu, not %llu to %llu", (unsigned long long)sector, (unsigned long long)round,
			     (unsigned long long)lowest, (unsigned long long)highest);
	}
}

// Compares a block just read with what is known of it.
static void check_block(const uint8_t *data, uint64_t block) {
	uint32_t state = holds[block - first_block];
	if (state == ZEROED)
		check_sectors(data, block, 0, 0, 0);
	else if (state != UNKNOWN)
		check_sectors(data, block, state, state, 0);
}

// Reads or writes several runs at once, from and to their parts of the buffer.
static void transfer(uint8_t *buffer, const struct run *runs, int count, int opcode) {
	struct iocb blocks_of[BATCH], *pointers[BATCH];
	struct io_event events[BATCH];
	memset(blocks_of, 0, sizeof blocks_of);
	for (int i = 0; i < count; i++) {
		blocks_of[i].aio_fildes = fd;
		blocks_of[i].aio_lio_opcode = opcode;
		blocks_of[i].aio_buf = (uintptr_t)(buffer + (size_t)i * RUN_BLOCKS_MAX * BLOCK);
		blocks_of[i].aio_nbytes = runs[i].count * BLOCK;
		blocks_of[i].aio_offset = runs[i].block * BLOCK;
		blocks_of[i].aio_data = i;
		pointers[i] = &blocks_of[i];
	}
	for (int sent = 0; sent < count;) {
		long result = syscall(SYS_io_submit, aio, count - sent, pointers + sent);
		if (result <= 0)
			fail("io_submit: %s", strerror(errno));
		sent += result;
	}
	for (int done = 0; done < count;) {
		long result = syscall(SYS_io_getevents, aio, 1, count - done, events, NULL);
		if (result < 0 && errno != EINTR)
			fail("io_getevents: %s", strerror(errno));
		for (long i = 0; i < result; i++) {
			const struct run *run = &runs[events[i].data];
			if (events[i].res != (int64_t)(run->count * BLOCK))
				fail("%s of %llu bytes at %llu gave %lld", opcode == IOCB_CMD_PWRITE ? "write" : "read",
				     (unsigned long long)run->count * BLOCK, (unsigned long long)run->block * BLOCK, (long long)events[i].res);
		}
		if (result > 0)
			done += result;
	}
}

static void write_runs(uint8_t *buffer, const struct run *runs, int count, uint64_t round) {
	for (int i = 0; i < count; i++)
		for (uint64_t sector = 0; sector < runs[i].count * (BLOCK / SECTOR); sector++)
			fill_sector((uint64_t *)(buffer + (size_t)i * RUN_BLOCKS_MAX * BLOCK + sector * SECTOR),
			            runs[i].block * (BLOCK / SECTOR) + sector, round);
	transfer(buffer, runs, count, IOCB_CMD_PWRITE);
	for (int i = 0; i < count; i++)
		for (uint64_t block = 0; block < runs[i].count; block++)
			holds[runs[i].block - first_block + block] = round;
	shared->worker[number].writes += count;
}

static void read_runs(const struct run *runs, int count) {
	transfer(read_buffer, runs, count, IOCB_CMD_PREAD);
	for (int i = 0; i < count; i++)
		for (uint64_t block = 0; block < runs[i].count; block++)
			check_block(read_buffer + ((size_t)i * RUN_BLOCKS_MAX + block) * BLOCK, runs[i].block + block);
	shared->worker[number].reads += count;
}

// Takes a run's content away, by a discard, after which it may read as anything, or by zeroing.
static void clear_run(const struct run *run) {
	uint64_t range[2] = {run->block * BLOCK, run->count * BLOCK};
	int is_discard = random_below(2) == 0;
	if (ioctl(fd, is_discard ? BLKDISCARD : BLKZEROOUT, range) != 0) {
		if (is_discard && errno == EOPNOTSUPP)
			return;
		fail("%s: %s", is_discard ? "BLKDISCARD" : "BLKZEROOUT", strerror(errno));
	}
	if (is_discard)
		shared->worker[number].discards++;
	else
		shared->worker[number].zeroings++;
	for (uint64_t block = 0; block < run->count; block++)
		holds[run->block - first_block + block] = is_discard ? UNKNOWN : ZEROED;
}

static void flush(void) {
	if (fdatasync(fd) != 0)
		fail("fdatasync: %s", strerror(errno));
	shared->worker[number].flushes++;
}

static uint64_t read_header(uint8_t *buffer) {
	const uint64_t *words = (const uint64_t *)buffer;
	if (pread(fd, buffer, BLOCK, first_block * BLOCK) != BLOCK)
		fail("read of the header: %s", strerror(errno));
	if (words[0] == 0 && words[1] == 0)
		return 0;
	if (words[0] != MAGIC || words[2] != mix(words[1]))
		fail("the header is damaged: %llx %llx", (unsigned long long)words[0], (unsigned long long)words[1]);
	return words[1];
}

static void write_header(uint8_t *buffer, uint64_t round) {
	uint64_t *words = (uint64_t *)buffer;
	memset(buffer, 0, BLOCK);
	words[0] = MAGIC, words[1] = round, words[2] = mix(round);
	if (pwrite(fd, buffer, BLOCK, first_block * BLOCK) != BLOCK)
		fail("write of the header: %s", strerror(errno));
	flush();
	shared->worker[number].synced = round;
}

// Cuts the slice, but for its header, into runs of random lengths in random order.
static uint64_t cut(struct run *runs) {
	uint64_t count = 0, block = first_block + 1, end = first_block + blocks;
	while (block < end) {
		uint64_t length = random_below(4) ? 1 + random_below(8) : 1 + random_below(RUN_BLOCKS_MAX);
		if (length > end - block)
			length = end - block;
		runs[count++] = (struct run){block, length};
		block += length;
	}
	for (uint64_t i = count; i > 1; i--) {
		uint64_t other = random_below(i);
		struct run kept = runs[i - 1];
		runs[i - 1] = runs[other], runs[other] = kept;
	}
	return count;
}

static void one_round(uint8_t *buffer, struct run *runs, uint64_t round) {
	uint64_t count = cut(runs);
	for (uint64_t at = 0; at < count; at += BATCH) {
		int batch = count - at < BATCH ? count - at : BATCH;
		write_runs(buffer, runs + at, batch, round);
		for (int turn = 0; turn < 3; turn++) {
			struct run again[BATCH];
			for (int i = 0; i < BATCH; i++)
				again[i] = runs[random_below(count)];
			read_runs(again, BATCH);
		}
		if (random_below(16) == 0)
			flush();
		if (trim && random_below(4) == 0)
			clear_run(&runs[random_below(count)]);
	}
	flush();
	write_header(buffer, round);
}

static void worker_main(int is_check) {
	size_t bytes = (size_t)BATCH * RUN_BLOCKS_MAX * BLOCK;
	uint8_t *buffer = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct run *runs = calloc(blocks, sizeof *runs);
	cpu_set_t processor;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	holds = malloc(blocks * sizeof *holds);
	if (buffer == MAP_FAILED || !runs || !holds || syscall(SYS_io_setup, BATCH, &aio) != 0)
		fail("no memory");
	read_buffer = buffer + bytes;
	memset(holds, 0xff, blocks * sizeof *holds);
	CPU_ZERO(&processor);
	CPU_SET(number % sysconf(_SC_NPROCESSORS_ONLN), &processor);
	sched_setaffinity(0, sizeof processor, &processor);
	random_state = mix(number + (uint64_t)getpid() * 1000);
	uint64_t round = read_header(buffer);
	shared->worker[number].synced = round;
	for (uint64_t done = 0; !is_check && !shared->stop && (rounds == 0 || done < rounds); done++)
		one_round(buffer, runs, ++round);
	for (uint64_t i = 0, count = cut(runs); i < count; i++) {
		read_runs(runs + i, 1);
		for (uint64_t block = 0; is_check && block < runs[i].count; block++)
			check_sectors(read_buffer + block * BLOCK, runs[i].block + block, trim ? 0 : round, round + 1, trim);
	}
	exit(0);
}

static uint64_t device_bytes(void) {
	struct stat status;
	uint64_t bytes = 0;
	if (fstat(fd, &status) != 0)
		return 0;
	if (S_ISREG(status.st_mode))
		return status.st_size;
	return ioctl(fd, BLKGETSIZE64, &bytes) == 0 ? bytes : 0;
}

static void open_device(int is_check) {
	int mode = is_check ? O_RDONLY : O_RDWR;
	fd = open(device, mode | O_DIRECT);
	// Not every file system has direct access.
	if (fd < 0 && errno == EINVAL)
		fd = open(device, mode);
	if (fd < 0)
		fail("open: %s", strerror(errno));
}

// The last round that all workers have on the disk.
static uint64_t synced(void) {
	uint64_t least = UINT64_MAX;
	for (uint64_t i = 0; i < workers; i++)
		if (shared->worker[i].synced < least)
			least = shared->worker[i].synced;
	return least;
}

// Waits for the workers; says what is on the disk meanwhile.
static void supervise(const pid_t *children, int is_check) {
	uint64_t said = 0;
	for (uint64_t left = workers; left > 0; usleep(20000)) {
		int status;
		if (until_file && access(until_file, F_OK) == 0)
			shared->stop = 1;
		for (pid_t child; (child = waitpid(-1, &status, WNOHANG)) > 0; left--) {
			if (status == 0)
				continue;
			if (!WIFEXITED(status))
				printf("LOAD FAILED: a worker ended by signal %d\n", WTERMSIG(status));
			for (uint64_t i = 0; i < workers; i++)
				kill(children[i], SIGKILL);
			exit(1);
		}
		if (!is_check && synced() > said) {
			printf("SYNCED %llu\n", (unsigned long long)(said = synced()));
			fflush(stdout);
		}
	}
}

static void read_arguments(int count, char **arguments) {
	struct { const char *name; uint64_t *value; } numbers[] = {
		{"workers=", &workers}, {"rounds=", &rounds}, {"trim=", &trim}, {"offset=", &offset}, {"size=", &size}};
	for (int i = 0; i < count; i++) {
		int known = strncmp(arguments[i], "until=", 6) == 0;
		if (known)
			until_file = arguments[i] + 6;
		for (size_t j = 0; j < sizeof numbers / sizeof *numbers; j++) {
			size_t length = strlen(numbers[j].name);
			if (strncmp(arguments[i], numbers[j].name, length) == 0) {
				*numbers[j].value = strtoull(arguments[i] + length, NULL, 0);
				known = 1;
			}
		}
		if (!known)
			fail("unknown argument %s", arguments[i]);
	}
	if (workers == 0 || workers > WORKERS_MAX)
		fail("not 1 to %d workers", WORKERS_MAX);
}

int main(int count, char **arguments) {
	pid_t children[WORKERS_MAX];
	int is_check = count > 2 && strcmp(arguments[1], "check") == 0;
	device = count > 2 ? arguments[2] : "";
	if (count < 3 || (!is_check && strcmp(arguments[1], "run") != 0))
		fail("usage: load run|check DEVICE [NAME=VALUE...]");
	read_arguments(count - 3, arguments + 3);
	open_device(is_check);
	if (size == 0)
		size = device_bytes() - offset;
	blocks = size / BLOCK / workers;
	if (blocks < 2)
		fail("too small: %llu bytes", (unsigned long long)size);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		fail("no memory");
	for (uint64_t i = 0; i < workers; i++) {
		first_block = offset / BLOCK + i * blocks;
		number = i;
		fflush(stdout);
		children[i] = fork();
		if (children[i] < 0)
			fail("fork: %s", strerror(errno));
		if (children[i] == 0)
			worker_main(is_check);
	}
	number = 0;
	supervise(children, is_check);
	uint64_t sums[5] = {0};
	for (uint64_t i = 0; i < workers; i++) {
		sums[0] += shared->worker[i].writes, sums[1] += shared->worker[i].reads, sums[2] += shared->worker[i].flushes;
		sums[3] += shared->worker[i].discards, sums[4] += shared->worker[i].zeroings;
	}
	printf("%s %llu: %llu writes, %llu reads, %llu flushes, %llu discards, %llu zeroings\n",
	       is_check ? "CHECKED" : "VERIFIED", (unsigned long long)synced(), (unsigned long long)sums[0],
	       (unsigned long long)sums[1], (unsigned long long)sums[2], (unsigned long long)sums[3], (unsigned long long)sums[4]);
	return 0;
}
