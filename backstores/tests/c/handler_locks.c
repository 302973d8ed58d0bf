/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A disk in memory with a lock that is named after a target port group, as several servers have it, and with a cache whose flush
 * can fail. tests/tcmur_locks.rs has the same list of blocks.
 */
#include "tcmu-runner.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	COUNTERS_BLOCK = 8,	/* reads as: struct counters */
	LOCK_LOST_BLOCK = 16,	/* a write: another server has taken the lock */
	CONN_LOST_BLOCK = 24,	/* a write: the connection is lost */
	BOTH_LOST_BLOCK = 32,	/* a write: and then another server has taken the lock */
	TIMED_OUT_BLOCK = 40,	/* a write: an event */
	CACHE_LOST_BLOCK = 48,	/* a write: the next flush fails */
};

#define NOBODY 0xFFFF
#define OTHERS 99
#define REFUSED_GROUP 13
/* The connection is lost while it takes the lock for the first time, and it gets it; and it is fenced. */
#define LOST_GROUP 14
#define FENCED_GROUP 15
#define REPORT_MS 300
#define LOCK_MS 200

static struct counters {
	uint64_t opens, closes, locks, unlocks, owner, reports, early_closes;
} counters = { .owner = NOBODY };
/* The device that reports just now, and that takes a lock. */
static struct tcmu_device *volatile reporting, *volatile locking;
static bool cache_lost;
static char data[1 << 20];

static int locks_open(struct tcmu_device *dev, bool reopen)
{
	(void)dev;
	(void)reopen;
	counters.opens++;
	return 0;
}

static void locks_close(struct tcmu_device *dev)
{
	counters.closes++;
	counters.early_closes += reporting == dev || locking == dev;
}

static int locks_read(struct tcmu_device *dev, struct tcmur_cmd *cmd, struct iovec *iov, size_t iov_cnt, size_t len,
		      off_t off)
{
	(void)dev;
	(void)cmd;
	if ((size_t)off > sizeof(data) || len > sizeof(data) - off)
		return TCMU_STS_RANGE;
	if (off / 512 == COUNTERS_BLOCK)
		memcpy(data + off, &counters, sizeof(counters));
	tcmu_memcpy_into_iovec(iov, iov_cnt, data + off, len);
	return TCMU_STS_OK;
}

static int locks_write(struct tcmu_device *dev, struct tcmur_cmd *cmd, struct iovec *iov, size_t iov_cnt, size_t len,
		       off_t off)
{
	(void)cmd;
	if ((size_t)off > sizeof(data) || len > sizeof(data) - off)
		return TCMU_STS_RANGE;
	switch (off / 512) {
	case LOCK_LOST_BLOCK:
		counters.owner = OTHERS;
		tcmu_notify_lock_lost(dev);
		return TCMU_STS_FENCED;
	case BOTH_LOST_BLOCK:
		counters.owner = OTHERS;
		/* fall through */
	case CONN_LOST_BLOCK:
		tcmu_notify_conn_lost(dev);
		return TCMU_STS_TIMEOUT;
	case TIMED_OUT_BLOCK:
		tcmu_notify_cmd_timed_out(dev);
		break;
	case CACHE_LOST_BLOCK:
		cache_lost = true;
		break;
	}
	tcmu_memcpy_from_iovec(data + off, len, iov, iov_cnt);
	return TCMU_STS_OK;
}

static int locks_flush(struct tcmu_device *dev, struct tcmur_cmd *cmd)
{
	bool lost = cache_lost;

	(void)dev;
	(void)cmd;
	cache_lost = false;
	return lost ? TCMU_STS_WR_ERR : TCMU_STS_OK;
}

static int locks_lock(struct tcmu_device *dev, uint16_t tag)
{
	static uint16_t last;
	bool first = tag != last;

	if (tag == REFUSED_GROUP)
		return TCMU_STS_HW_ERR;
	counters.locks++;
	last = tag;
	if (first && (tag == LOST_GROUP || tag == FENCED_GROUP)) {
		locking = dev;
		tcmu_notify_conn_lost(dev);
		usleep(LOCK_MS * 1000);
		locking = NULL;
		if (tag == FENCED_GROUP)
			return TCMU_STS_FENCED;
	}
	counters.owner = tag;
	return TCMU_STS_OK;
}

static int locks_unlock(struct tcmu_device *dev)
{
	(void)dev;
	counters.unlocks++;
	counters.owner = NOBODY;
	return TCMU_STS_OK;
}

static int locks_get_lock_tag(struct tcmu_device *dev, uint16_t *tag)
{
	(void)dev;
	if (counters.owner == NOBODY)
		return TCMU_STS_NO_LOCK_HOLDERS;
	*tag = counters.owner;
	return TCMU_STS_OK;
}

static int locks_report_event(struct tcmu_device *dev)
{
	reporting = dev;
	counters.reports++;
	usleep(REPORT_MS * 1000);
	reporting = NULL;
	return 0;
}

/* SYNCHRONIZE CACHE ends as its LBA says. */
static int locks_cmd(struct tcmu_device *dev, struct tcmur_cmd *cmd)
{
	struct tcmulib_cmd *lib = cmd->lib_cmd;

	if (lib->cdb[0] != 0x35)
		return lib->cdb[0] == 0 ? TCMU_STS_OK : TCMU_STS_NOT_HANDLED;
	switch (tcmu_cdb_get_lba(lib->cdb)) {
	case 1:			/* ILLEGAL REQUEST */
		return tcmu_sense_set_data(lib->sense_buf, 0x5, 0x2400);
	case 2:			/* MEDIUM ERROR, in its own words */
		return tcmu_sense_set_data(lib->sense_buf, 0x3, 0x0C02);
	case 3:
		return TCMU_STS_BUSY;
	case 4:			/* and then another server has taken the lock */
		tcmu_notify_lock_lost(dev);
		break;
	}
	return TCMU_STS_OK;
}

static struct tcmur_handler handler = {
	.name = "Locks",
	.subtype = "locks",
	.cfg_desc = "any name",
	.open = locks_open,
	.close = locks_close,
	.read = locks_read,
	.write = locks_write,
	.flush = locks_flush,
	.handle_cmd = locks_cmd,
	.lock = locks_lock,
	.unlock = locks_unlock,
	.get_lock_tag = locks_get_lock_tag,
	.report_event = locks_report_event,
	.nr_threads = 1,
};

int handler_init(void)
{
	return tcmur_register_handler(&handler);
}
