/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A handler in C: a disk in memory. The same file works under tcmu-runner 1.5 and here.
 *
 *     cc -shared -fPIC -I backstores/abi -o handler_sample.so backstores/examples/handler_sample.c
 *     scstd serve --handler-dir . '/dev/tcmur/sample/any-name?size=64M'
 *
 * This is the simple kind: nr_threads says from how many threads the calls come, each call does its work and returns
 * how that went. A handler with threads or callbacks of its own has nr_threads = 0, returns TCMU_STS_OK for what it has
 * begun, and ends it by tcmur_cmd_complete(); tests/c/handler_fault.c is one.
 */
#include "tcmu-runner.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define err(dev, ...) tcmu_err_message(dev, __func__, __LINE__, __VA_ARGS__)

struct disk {
	char *data;
	uint64_t size;
};

/* The server asks before it opens, to tell the user what is wrong. */
static bool sample_check_config(const char *cfgstring, char **reason)
{
	/* "sample/NAME" */
	if (strlen(cfgstring) > strlen("sample/"))
		return true;
	*reason = strdup("a name is missing");
	return false;
}

static int sample_open(struct tcmu_device *dev, bool reopen)
{
	struct disk *disk = calloc(1, sizeof(*disk));

	(void)reopen;
	if (!disk)
		return -ENOMEM;
	/* From ?size=BYTES. A handler that knows better calls tcmu_dev_set_num_lbas() and _block_size(). */
	disk->size = tcmu_dev_get_num_lbas(dev) * tcmu_dev_get_block_size(dev);
	disk->data = disk->size ? calloc(1, disk->size) : NULL;
	if (!disk->data) {
		err(dev, "no memory for %llu bytes\n", (unsigned long long)disk->size);
		free(disk);
		return -EINVAL;
	}
	tcmu_dev_set_write_cache_enabled(dev, false);
	tcmu_dev_set_solid_state_media(dev, true);
	tcmur_dev_set_private(dev, disk);
	return 0;
}

static void sample_close(struct tcmu_device *dev)
{
	struct disk *disk = tcmur_dev_get_private(dev);

	free(disk->data);
	free(disk);
}

static bool outside(struct disk *disk, uint64_t off, uint64_t len)
{
	return off > disk->size || len > disk->size - off;
}

static int sample_read(struct tcmu_device *dev, struct tcmur_cmd *cmd, struct iovec *iov, size_t iov_cnt, size_t len,
		       off_t off)
{
	struct disk *disk = tcmur_dev_get_private(dev);

	(void)cmd;
	if (outside(disk, off, len))
		return TCMU_STS_RANGE;
	tcmu_memcpy_into_iovec(iov, iov_cnt, disk->data + off, len);
	return TCMU_STS_OK;
}

static int sample_write(struct tcmu_device *dev, struct tcmur_cmd *cmd, struct iovec *iov, size_t iov_cnt, size_t len,
			off_t off)
{
	struct disk *disk = tcmur_dev_get_private(dev);

	(void)cmd;
	if (outside(disk, off, len))
		return TCMU_STS_RANGE;
	tcmu_memcpy_from_iovec(disk->data + off, len, iov, iov_cnt);
	return TCMU_STS_OK;
}

static int sample_unmap(struct tcmu_device *dev, struct tcmur_cmd *cmd, uint64_t off, uint64_t len)
{
	struct disk *disk = tcmur_dev_get_private(dev);

	(void)cmd;
	if (outside(disk, off, len))
		return TCMU_STS_RANGE;
	memset(disk->data + off, 0, len);
	return TCMU_STS_OK;
}

static struct tcmur_handler sample = {
	.name = "Sample: a disk in memory",
	.subtype = "sample",
	.cfg_desc = "any name",
	.check_config = sample_check_config,
	.open = sample_open,
	.close = sample_close,
	.read = sample_read,
	.write = sample_write,
	.unmap = sample_unmap,
	.nr_threads = 2,
};

int handler_init(void)
{
	return tcmur_register_handler(&sample);
}
