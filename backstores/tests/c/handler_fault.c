/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A handler that misbehaves on demand: an asynchronous disk in memory whose block at a multiple of eight, as the first of a
 * read or write, says what goes wrong. tests/tcmur_faults.rs has the same list. It also counts writes and flushes, and
 * takes SCSI commands.
 */
#include "tcmu-runner.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	EIO_BLOCK = 8,		/* medium error */
	GARBAGE_BLOCK = 16,	/* ends with a number that is no status */
	TWICE_BLOCK = 24,	/* completed twice */
	NEVER_BLOCK = 32,	/* kept */
	LATE_BLOCK = 40,	/* completed, after all that was kept */
	SLOW_BLOCK = 48,	/* completed by a thread after SLOW_MS */
	BOTH_BLOCK = 56,	/* completed, and failed by the return value */
	FENCED_BLOCK = 64,
	BUSY_BLOCK = 72,
	LOST_BLOCK = 80,	/* the connection is lost */
	HANG_BLOCK = 88,	/* the call does not return for HANG_MS */
	STRAY_BLOCK = 96,	/* a device and a command are named that are not there */
	COUNTERS_BLOCK = 104,	/* reads as: struct counters */
};

#define SLOW_MS 300
#define HANG_MS 3000
#define MAX_KEPT 16

struct disk {
	char *data;
	uint64_t size;
};

/* The last write and flush: in which order they came. */
static struct counters {
	uint64_t opens, reopens, closes, writes, flushes, last_write, last_flush, locks, unlocks;
} counters;
static uint64_t now;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct tcmur_cmd *kept[MAX_KEPT];
static int nr_kept;
static struct tcmu_device *closed;

struct later {
	struct tcmu_device *dev;
	struct tcmur_cmd *cmd;
	int sts;
};

static void *complete_later(void *arg)
{
	struct later later = *(struct later *)arg;

	free(arg);
	usleep(SLOW_MS * 1000);
	tcmur_cmd_complete(later.dev, later.cmd, later.sts);
	return NULL;
}

static void on_thread(struct tcmu_device *dev, struct tcmur_cmd *cmd, int sts)
{
	struct later *later = malloc(sizeof(*later));
	pthread_t thread;

	*later = (struct later){ dev, cmd, sts };
	pthread_create(&thread, NULL, complete_later, later);
	pthread_detach(thread);
}

static int fault_open(struct tcmu_device *dev, bool reopen)
{
	struct disk *disk = calloc(1, sizeof(*disk));

	disk->size = tcmu_dev_get_num_lbas(dev) * tcmu_dev_get_block_size(dev);
	disk->data = calloc(1, disk->size);
	tcmur_dev_set_private(dev, disk);
	if (reopen)
		counters.reopens++;
	else
		counters.opens++;
	if (closed && closed != dev) {
		/* Calls for a device that was closed long ago. */
		tcmur_cmd_complete(closed, &counters, TCMU_STS_OK);
		tcmu_notify_conn_lost(closed);
		tcmu_dev_set_num_lbas(closed, 1);
		tcmu_err_message(closed, __func__, __LINE__, "%s\n", "late news");
	}
	return 0;
}

static void fault_close(struct tcmu_device *dev)
{
	struct disk *disk = tcmur_dev_get_private(dev);

	free(disk->data);
	free(disk);
	counters.closes++;
	closed = dev;
}

static int fault(struct tcmu_device *dev, struct tcmur_cmd *cmd, uint64_t block, int bad)
{
	int i;

	switch (block) {
	case EIO_BLOCK:
		tcmur_cmd_complete(dev, cmd, bad);
		break;
	case GARBAGE_BLOCK:
		tcmur_cmd_complete(dev, cmd, 123456789);
		break;
	case TWICE_BLOCK:
		tcmur_cmd_complete(dev, cmd, TCMU_STS_OK);
		tcmur_cmd_complete(dev, cmd, bad);
		break;
	case NEVER_BLOCK:
		pthread_mutex_lock(&lock);
		if (nr_kept < MAX_KEPT)
			kept[nr_kept++] = cmd;
		pthread_mutex_unlock(&lock);
		break;
	case LATE_BLOCK:
		pthread_mutex_lock(&lock);
		for (i = 0; i < nr_kept; i++)
			tcmur_cmd_complete(dev, kept[i], TCMU_STS_OK);
		nr_kept = 0;
		pthread_mutex_unlock(&lock);
		tcmur_cmd_complete(dev, cmd, TCMU_STS_OK);
		break;
	case SLOW_BLOCK:
		on_thread(dev, cmd, TCMU_STS_OK);
		break;
	case BOTH_BLOCK:
		tcmur_cmd_complete(dev, cmd, TCMU_STS_OK);
		return TCMU_STS_HW_ERR;
	case FENCED_BLOCK:
		tcmu_notify_lock_lost(dev);
		return TCMU_STS_FENCED;
	case BUSY_BLOCK:
		return TCMU_STS_BUSY;
	case LOST_BLOCK:
		tcmu_notify_conn_lost(dev);
		tcmur_cmd_complete(dev, cmd, TCMU_STS_TIMEOUT);
		break;
	case HANG_BLOCK:
		usleep(HANG_MS * 1000);
		tcmur_cmd_complete(dev, cmd, TCMU_STS_OK);
		break;
	case STRAY_BLOCK:
		tcmur_cmd_complete(NULL, cmd, TCMU_STS_OK);
		tcmur_cmd_complete((struct tcmu_device *)&counters, cmd, TCMU_STS_OK);
		tcmur_cmd_complete(dev, NULL, TCMU_STS_OK);
		tcmur_cmd_complete(dev, &counters, TCMU_STS_OK);
		(void)tcmu_dev_get_cfgstring(NULL);
		tcmur_cmd_complete(dev, cmd, TCMU_STS_OK);
		break;
	default:
		tcmur_cmd_complete(dev, cmd, TCMU_STS_OK);
	}
	return TCMU_STS_OK;
}

static int fault_read(struct tcmu_device *dev, struct tcmur_cmd *cmd, struct iovec *iov, size_t iov_cnt, size_t len,
		      off_t off)
{
	struct disk *disk = tcmur_dev_get_private(dev);

	if ((uint64_t)off > disk->size || len > disk->size - off)
		return TCMU_STS_RANGE;
	if (off / 512 == COUNTERS_BLOCK) {
		tcmu_iovec_zero(iov, iov_cnt);
		tcmu_memcpy_into_iovec(iov, iov_cnt, &counters, sizeof(counters));
	} else {
		tcmu_memcpy_into_iovec(iov, iov_cnt, disk->data + off, len);
	}
	return fault(dev, cmd, off / 512, TCMU_STS_RD_ERR);
}

static int fault_write(struct tcmu_device *dev, struct tcmur_cmd *cmd, struct iovec *iov, size_t iov_cnt, size_t len,
		       off_t off)
{
	struct disk *disk = tcmur_dev_get_private(dev);

	if ((uint64_t)off > disk->size || len > disk->size - off)
		return TCMU_STS_RANGE;
	tcmu_memcpy_from_iovec(disk->data + off, len, iov, iov_cnt);
	counters.writes++;
	counters.last_write = ++now;
	return fault(dev, cmd, off / 512, TCMU_STS_WR_ERR);
}

static int fault_flush(struct tcmu_device *dev, struct tcmur_cmd *cmd)
{
	counters.flushes++;
	counters.last_flush = ++now;
	on_thread(dev, cmd, TCMU_STS_OK);
	return TCMU_STS_OK;
}

/* The first time this server is fenced, until it opens the device again. */
static int fault_lock(struct tcmu_device *dev, uint16_t tag)
{
	(void)tag;
	counters.locks++;
	/* News of before. */
	tcmu_notify_lock_lost(dev);
	return counters.locks == 1 ? TCMU_STS_FENCED : TCMU_STS_OK;
}

static int fault_unlock(struct tcmu_device *dev)
{
	(void)dev;
	counters.unlocks++;
	return TCMU_STS_OK;
}

static int fault_get_lock_state(struct tcmu_device *dev)
{
	(void)dev;
	return TCMUR_DEV_LOCK_WRITE_LOCKED;
}

/* Vendor-specific codes in the group of 6-byte CDBs. */
static int fault_cmd(struct tcmu_device *dev, struct tcmur_cmd *cmd)
{
	struct tcmulib_cmd *lib = cmd->lib_cmd;
	static char inquiry[36] = { 0x00, 0, 5, 2, 31, 0, 0, 0, 'F', 'A', 'U', 'L', 'T' };

	switch (lib->cdb[0]) {
	case 0x00:
		return TCMU_STS_OK;
	case 0x12:
		if (lib->cdb[1])
			return TCMU_STS_INVALID_CDB;
		tcmu_memcpy_into_iovec(lib->iovec, lib->iov_cnt, inquiry, sizeof(inquiry));
		return TCMU_STS_OK;
	case 0x02:		/* own sense */
		return tcmu_sense_set_data(lib->sense_buf, 0x9, 0x8001);
	case 0x06:		/* claims sense, has none */
		return TCMU_STS_PASSTHROUGH_ERR;
	case 0x0d:
		return 4711;
	case 0x0e:		/* later */
		on_thread(dev, cmd, TCMU_STS_OK);
		return TCMU_STS_ASYNC_HANDLED;
	case 0x88:
		/* As real ones: the length is the CDB's, whatever the pieces have. */
		tcmu_iovec_zero(lib->iovec, lib->iov_cnt);
		if (tcmu_iovec_length(lib->iovec, lib->iov_cnt) != tcmu_cdb_get_xfer_length(lib->cdb) * 512)
			return TCMU_STS_HW_ERR;
		return TCMU_STS_OK;
	case 0x8a:
		if (tcmu_iovec_length(lib->iovec, lib->iov_cnt) != tcmu_cdb_get_xfer_length(lib->cdb) * 512)
			return TCMU_STS_HW_ERR;
		return TCMU_STS_OK;
	}
	return TCMU_STS_NOT_HANDLED;
}

static void fault_destroy(void)
{
	tcmu_info_message(NULL, __func__, __LINE__, "%s\n", "destroyed");
}

static struct tcmur_handler handler = {
	.name = "Faults on demand",
	.subtype = "fault",
	.cfg_desc = "any name",
	.open = fault_open,
	.close = fault_close,
	.read = fault_read,
	.write = fault_write,
	.flush = fault_flush,
	.handle_cmd = fault_cmd,
	.lock = fault_lock,
	.unlock = fault_unlock,
	.get_lock_state = fault_get_lock_state,
	.destroy = fault_destroy,
	.nr_threads = 0,
};

/* What a server must refuse. */
static struct tcmur_handler twice = { .subtype = "fault", .open = fault_open, .close = fault_close, .read = fault_read };
static struct tcmur_handler slash = { .subtype = "a/b", .open = fault_open, .close = fault_close, .read = fault_read };
static struct tcmur_handler closeless = { .subtype = "closeless", .open = fault_open, .read = fault_read };

int handler_init(void)
{
	int ret = tcmur_register_handler(&handler);

	if (ret)
		return ret;
	if (!tcmur_register_handler(&twice) || !tcmur_register_handler(&slash) ||
	    !tcmur_register_handler(&closeless) || !tcmur_register_handler(NULL))
		return -EINVAL;
	return 0;
}
