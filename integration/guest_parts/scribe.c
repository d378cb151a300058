/* The guest's writer: journals whose state at any instant can be judged afterwards.
 *
 *   scribe write DIR...     write in step to all DIRs, until something fails
 *   scribe verify DIR...    judge what is there; "VERIFY OK n0 n1 ..." or "VERIFY BAD why"
 *
 * Round n appends record n to DIR/journal of each DIR in turn, then overwrites one page of DIR/table
 * of each DIR in turn, all with O_DSYNC. So at any one instant the journals' last numbers are equal
 * or fall by one at one place, and every page is that of the last round which wrote it; only pages
 * of the last round may be old still. A page that is newer than the journal was read too late.
 *
 * Each finished round is told as "A n us": its number and how long its longest write took.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 256, STRIDE = 79, DISKS_MAX = 20, PAUSE_US = 10000 };

struct record {
	char magic[8];
	uint64_t number;
	uint32_t disk;
	uint32_t kind;
	uint8_t noise[PAGE - 28];
	uint32_t sum;
};

static uint32_t table[256];

static void make_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int k = 0; k < 8; k++)
			c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
		table[i] = c;
	}
}

static uint32_t crc(const void *data, size_t length)
{
	const uint8_t *p = data;
	uint32_t c = ~0u;
	while (length--)
		c = table[(c ^ *p++) & 255] ^ (c >> 8);
	return ~c;
}

static void fill(struct record *r, uint64_t number, uint32_t disk, uint32_t kind)
{
	uint64_t x = number * 0x9e3779b97f4a7c15u + disk * 2 + kind + 1;
	memset(r, 0, sizeof *r);
	memcpy(r->magic, "SCRIBE01", 8);
	r->number = number;
	r->disk = disk;
	r->kind = kind;
	for (size_t i = 0; i < sizeof r->noise; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		r->noise[i] = (uint8_t)(x >> 32);
	}
	r->sum = crc(r, offsetof(struct record, sum));
}

static int open_in(const char *directory, const char *name, int flags)
{
	char path[256];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	return open(path, flags, 0644);
}

static unsigned page_of(uint64_t number)
{
	return (unsigned)(number * STRIDE % PAGES);
}

/* Read record at an index; 1 if whole and of that number, 0 at the end, -1 if bad. */
static int is_whole(int fd, uint64_t index, uint64_t number, uint32_t disk, uint32_t kind)
{
	struct record got, want;
	ssize_t length = pread(fd, &got, PAGE, (off_t)(index * PAGE));
	if (length == 0)
		return 0;
	fill(&want, number, disk, kind);
	return length == PAGE && memcmp(&got, &want, PAGE) == 0 ? 1 : -1;
}

static int64_t last_number(int fd, uint32_t disk)
{
	uint64_t n = 0;
	int found;
	while ((found = is_whole(fd, n, n + 1, disk, 0)) > 0)
		n++;
	return found < 0 ? -1 : (int64_t)n;
}

/* The number of the first page that is not as the journal says, or -1. */
static int bad_page(int fd, uint64_t last, uint64_t last_of_all, uint32_t disk)
{
	for (unsigned page = 0; page < PAGES; page++) {
		uint64_t n = last;
		while (n > 0 && page_of(n) != page)
			n--;
		if (n == 0)
			continue;
		if (is_whole(fd, page, n, disk, 1) > 0 && (n < last || last_of_all == last))
			continue;
		if (n < last)
			return (int)page;
		/* The last round may have been cut short before its page: the older one is there. */
		if (n <= PAGES) {
			struct record none = { 0 }, got = { 0 };
			if (pread(fd, &got, PAGE, (off_t)page * PAGE) >= 0 &&
			    memcmp(&none, &got, PAGE) == 0)
				continue;
			return (int)page;
		}
		if (is_whole(fd, page, n - PAGES, disk, 1) <= 0)
			return (int)page;
	}
	return -1;
}

static int64_t verify(int count, char **directories)
{
	int64_t numbers[DISKS_MAX];
	for (int i = 0; i < count; i++) {
		int fd = open_in(directories[i], "journal", O_RDONLY);
		numbers[i] = fd < 0 ? 0 : last_number(fd, (uint32_t)i);
		if (fd >= 0)
			close(fd);
		if (numbers[i] < 0) {
			printf("VERIFY BAD record in journal of disk %d\n", i);
			return -1;
		}
		if (i > 0 && (numbers[i] > numbers[i - 1] || numbers[i] < numbers[0] - 1)) {
			printf("VERIFY BAD disks are out of step: %lld after %lld\n",
			       (long long)numbers[i], (long long)numbers[i - 1]);
			return -1;
		}
	}
	for (int i = 0; i < count; i++) {
		int fd = open_in(directories[i], "table", O_RDONLY);
		int page = fd < 0 ? (numbers[i] > 1 ? 0 : -1)
				  : bad_page(fd, (uint64_t)numbers[i],
					     (uint64_t)numbers[count - 1], (uint32_t)i);
		if (fd >= 0)
			close(fd);
		if (page >= 0) {
			printf("VERIFY BAD page %d of disk %d at %lld\n", page, i, (long long)numbers[i]);
			return -1;
		}
	}
	printf("VERIFY OK");
	for (int i = 0; i < count; i++)
		printf(" %lld", (long long)numbers[i]);
	printf("\n");
	return numbers[count - 1];
}

static long write_page(int fd, const struct record *r, uint64_t index)
{
	struct timespec before, after;
	clock_gettime(CLOCK_MONOTONIC, &before);
	if (pwrite(fd, r, PAGE, (off_t)(index * PAGE)) != PAGE) {
		printf("WRITE FAILED: %s\n", strerror(errno));
		exit(1);
	}
	clock_gettime(CLOCK_MONOTONIC, &after);
	return (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
}

static int keep_writing(int count, char **directories, uint64_t number)
{
	int journals[DISKS_MAX], tables[DISKS_MAX];
	for (int i = 0; i < count; i++) {
		journals[i] = open_in(directories[i], "journal", O_CREAT | O_WRONLY | O_DSYNC);
		tables[i] = open_in(directories[i], "table", O_CREAT | O_WRONLY | O_DSYNC);
		if (journals[i] < 0 || tables[i] < 0) {
			printf("WRITE FAILED: %s\n", strerror(errno));
			return 1;
		}
	}
	for (;; number++) {
		struct record r;
		long longest_us = 0;
		for (int kind = 0; kind < 2; kind++)
			for (int i = 0; i < count; i++) {
				fill(&r, number, (uint32_t)i, (uint32_t)kind);
				long us = kind ? write_page(tables[i], &r, page_of(number))
					       : write_page(journals[i], &r, number - 1);
				longest_us = us > longest_us ? us : longest_us;
			}
		printf("A %llu %ld\n", (unsigned long long)number, longest_us);
		usleep(PAUSE_US);
	}
}

int main(int argc, char **argv)
{
	int count = argc - 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	make_table();
	if (count < 1 || count > DISKS_MAX)
		return 2;
	int64_t last = verify(count, argv + 2);
	if (last < 0)
		return 1;
	if (strcmp(argv[1], "write"))
		return 0;
	/* The last round may have been cut short: it is written again. */
	return keep_writing(count, argv + 2, last > 0 ? (uint64_t)last : 1);
}
