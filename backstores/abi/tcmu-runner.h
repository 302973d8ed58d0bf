/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tcmu-runner 1.5.4 and the handler plug-ins that are built for it have in common: the layout of the structures
 * that both touch, and the numbers that they exchange. Written from the facts of that binary interface, for this project;
 * later releases differ (their struct tcmur_device has a mutex in front of the flags).
 *
 * src/tcmur/abi.rs is made from this file by `cargo xtask codegen`; backstores/tests/layout.rs holds both against the
 * C compiler and against the numbers that the shipped plug-ins were seen to use. Handlers may be written against
 * this file too: see examples/handler_sample.c.
 */
#ifndef SCST_USERMODE_TCMU_RUNNER_H
#define SCST_USERMODE_TCMU_RUNNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

/* A device; handlers know it by its address only and ask for what they need with tcmu_dev_*(). */
struct tcmu_device;

/* What a reconfiguration is about. */
enum tcmulib_cfg_type {
	TCMULIB_CFG_DEV_CFGSTR = 0,
	TCMULIB_CFG_DEV_SIZE = 1,
	TCMULIB_CFG_WRITE_CACHE = 2,
};

struct tcmulib_cfg_info {
	int type;
	union {
		uint64_t dev_size;
		char *dev_cfgstring;
		bool write_cache;
	} data;
};

/* How a command ended, or what became of it. */
enum tcmu_status {
	TCMU_STS_ASYNC_HANDLED = -2,		/* will be completed later */
	TCMU_STS_NOT_HANDLED = -1,		/* the handler does not know this command */
	TCMU_STS_OK = 0,
	TCMU_STS_NO_RESOURCE = 1,
	TCMU_STS_PASSTHROUGH_ERR = 2,		/* the handler has filled the sense buffer */
	TCMU_STS_BUSY = 3,
	TCMU_STS_WR_ERR = 4,
	TCMU_STS_RD_ERR = 5,
	TCMU_STS_MISCOMPARE = 6,
	TCMU_STS_INVALID_CMD = 7,
	TCMU_STS_INVALID_CDB = 8,
	TCMU_STS_INVALID_PARAM_LIST = 9,
	TCMU_STS_INVALID_PARAM_LIST_LEN = 10,
	TCMU_STS_TIMEOUT = 11,
	TCMU_STS_FENCED = 12,
	TCMU_STS_HW_ERR = 13,
	TCMU_STS_RANGE = 14,
	TCMU_STS_FRMT_IN_PROGRESS = 15,
	TCMU_STS_CAPACITY_CHANGED = 16,
	TCMU_STS_NOTSUPP_SAVE_PARAMS = 17,
	TCMU_STS_WR_ERR_INCOMPAT_FRMT = 18,
	TCMU_STS_TRANSITION = 19,
	TCMU_STS_IMPL_TRANSITION_ERR = 20,
	TCMU_STS_EXPL_TRANSITION_ERR = 21,
	TCMU_STS_NO_LOCK_HOLDERS = 22,
	TCMU_STS_NOTSUPP_SEG_DESC_TYPE = 23,
	TCMU_STS_NOTSUPP_TGT_DESC_TYPE = 24,
	TCMU_STS_CP_TGT_DEV_NOTCONN = 25,
	TCMU_STS_INVALID_CP_TGT_DEV_TYPE = 26,
	TCMU_STS_TOO_MANY_SEG_DESC = 27,
	TCMU_STS_TOO_MANY_TGT_DESC = 28,
};

/* Room for sense data in a command. */
#define TCMU_SENSE_LEN 96

/* An element of a list; only its size matters here. */
struct tcmu_list_node {
	struct tcmu_list_node *next, *prev;
};

/* A SCSI command. */
struct tcmulib_cmd {
	uint16_t cmd_id;
	uint8_t *cdb;
	struct iovec *iovec;
	size_t iov_cnt;
	uint8_t sense_buf[TCMU_SENSE_LEN];
	void *hm_private;			/* its struct tcmur_cmd */
};

/* A request to a handler, which it names to tcmur_cmd_complete(). */
struct tcmur_cmd {
	struct tcmulib_cmd *lib_cmd;
	/* For commands that are composed of several requests. */
	struct iovec *iovec;
	size_t iov_cnt;
	void *iov_base_copy;
	void *cmd_state;
	size_t requested;
	struct tcmu_list_node cmds_list_entry;
	struct timespec start_time;
	bool timed_out;
	void (*done)(struct tcmu_device *dev, struct tcmur_cmd *cmd, int ret);
};

/* A kind of backing store: what a plug-in registers. */
struct tcmur_handler {
	const char *name;
	const char *subtype;
	const char *cfg_desc;
	void *opaque;

	/* Looks at a configuration string; if false, *reason is text from malloc(), or NULL. */
	bool (*check_config)(const char *cfgstring, char **reason);
	int (*reconfig)(struct tcmu_device *dev, struct tcmulib_cfg_info *cfg);

	/* 0 or a negative errno. */
	int (*open)(struct tcmu_device *dev, bool reopen);
	void (*close)(struct tcmu_device *dev);

	/*
	 * More than 0: the calls below may block, come from so many threads, and return the result. 0: they come from one
	 * thread; TCMU_STS_OK means that tcmur_cmd_complete() will tell the result (but in handle_cmd, where that is
	 * TCMU_STS_ASYNC_HANDLED).
	 */
	int nr_threads;

	/* Any SCSI command. TCMU_STS_NOT_HANDLED: let the others try. */
	int (*handle_cmd)(struct tcmu_device *dev, struct tcmur_cmd *cmd);

	int (*read)(struct tcmu_device *dev, struct tcmur_cmd *cmd, struct iovec *iovec, size_t iov_cnt, size_t len,
		    off_t off);
	int (*write)(struct tcmu_device *dev, struct tcmur_cmd *cmd, struct iovec *iovec, size_t iov_cnt, size_t len,
		     off_t off);
	int (*flush)(struct tcmu_device *dev, struct tcmur_cmd *cmd);
	int (*unmap)(struct tcmu_device *dev, struct tcmur_cmd *cmd, uint64_t off, uint64_t len);
	int (*writesame)(struct tcmu_device *dev, struct tcmur_cmd *cmd, uint64_t off, uint64_t len,
			 struct iovec *iovec, size_t iov_cnt);
	int (*caw)(struct tcmu_device *dev, struct tcmur_cmd *cmd, uint64_t off, uint64_t len, struct iovec *iovec,
		   size_t iov_cnt);

	/* The counters in struct tcmur_device have changed. */
	int (*report_event)(struct tcmu_device *dev);

	/* A lock that several servers share; TCMU_STS_*, and a state of enum tcmur_lock_state. */
	int (*lock)(struct tcmu_device *dev, uint16_t tag);
	int (*unlock)(struct tcmu_device *dev);
	int (*get_lock_tag)(struct tcmu_device *dev, uint16_t *tag);
	int (*get_lock_state)(struct tcmu_device *dev);

	bool _is_dbus_handler;
	bool (*update_logdir)(void);

	/* Once per process, before the first and after the last device. */
	int (*init)(void);
	void (*destroy)(void);
};

/* States of the lock that several servers share. */
enum tcmur_lock_state {
	TCMUR_DEV_LOCK_UNKNOWN = 0,
	TCMUR_DEV_LOCK_UNLOCKED = 1,
	TCMUR_DEV_LOCK_READ_LOCKING = 2,
	TCMUR_DEV_LOCK_READ_LOCKED = 3,
	TCMUR_DEV_LOCK_WRITE_LOCKING = 4,
	TCMUR_DEV_LOCK_WRITE_LOCKED = 5,
};

/* The server's part of a device, as far as a handler looks into it: behind tcmu_dev_get_private(). */
struct tcmur_device {
	struct tcmu_device *dev;
	void *hm_private;
	unsigned long cmdproc_thread;
	uint32_t flags;
	uint8_t failover_type;
	struct tcmu_list_node recovery_entry;
	uint64_t lock_lost_cnt;
	uint64_t conn_lost_cnt;
	uint64_t cmd_timed_out_cnt;
	void *event_work;
	bool lock_lost;
	uint8_t lock_state;
	/* Locks and queues of the server follow, which no handler touches. */
	unsigned char rest[942];
};

/* What a plug-in has. */
int handler_init(void);

/* What it may call: all from 1.5.4's libtcmu_common.h, libtcmu_log.h, tcmu-runner.h and tcmur_device.h that makes
 * sense without the kernel's part. */
int tcmur_register_handler(struct tcmur_handler *handler);
bool tcmur_unregister_handler(struct tcmur_handler *handler);
void tcmur_cmd_complete(struct tcmu_device *dev, void *data, int rc);

void *tcmu_dev_get_private(struct tcmu_device *dev);
void tcmur_dev_set_private(struct tcmu_device *dev, void *private_data);
void *tcmur_dev_get_private(struct tcmu_device *dev);
const char *tcmu_dev_get_uio_name(struct tcmu_device *dev);
char *tcmu_dev_get_cfgstring(struct tcmu_device *dev);
void tcmu_dev_set_num_lbas(struct tcmu_device *dev, uint64_t num_lbas);
uint64_t tcmu_dev_get_num_lbas(struct tcmu_device *dev);
void tcmu_dev_set_block_size(struct tcmu_device *dev, uint32_t block_size);
uint32_t tcmu_dev_get_block_size(struct tcmu_device *dev);
uint64_t tcmu_lba_to_byte(struct tcmu_device *dev, uint64_t lba);
uint64_t tcmu_byte_to_lba(struct tcmu_device *dev, uint64_t byte);
void tcmu_dev_set_max_xfer_len(struct tcmu_device *dev, uint32_t len);
uint32_t tcmu_dev_get_max_xfer_len(struct tcmu_device *dev);
void tcmu_dev_set_opt_xcopy_rw_len(struct tcmu_device *dev, uint32_t len);
uint32_t tcmu_dev_get_opt_xcopy_rw_len(struct tcmu_device *dev);
void tcmu_dev_set_max_unmap_len(struct tcmu_device *dev, uint32_t len);
uint32_t tcmu_dev_get_max_unmap_len(struct tcmu_device *dev);
void tcmu_dev_set_opt_unmap_gran(struct tcmu_device *dev, uint32_t len, bool split);
uint32_t tcmu_dev_get_opt_unmap_gran(struct tcmu_device *dev);
void tcmu_dev_set_unmap_gran_align(struct tcmu_device *dev, uint32_t len);
uint32_t tcmu_dev_get_unmap_gran_align(struct tcmu_device *dev);
void tcmu_dev_set_write_cache_enabled(struct tcmu_device *dev, bool enabled);
bool tcmu_dev_get_write_cache_enabled(struct tcmu_device *dev);
void tcmu_dev_set_solid_state_media(struct tcmu_device *dev, bool solid_state);
bool tcmu_dev_get_solid_state_media(struct tcmu_device *dev);
void tcmu_dev_set_unmap_enabled(struct tcmu_device *dev, bool enabled);
bool tcmu_dev_get_unmap_enabled(struct tcmu_device *dev);
int tcmu_cfgfs_dev_get_attr_int(struct tcmu_device *dev, const char *name);
uint64_t tcmu_cfgfs_dev_get_info_u64(struct tcmu_device *dev, const char *name, int *fn_ret);
char *tcmu_cfgfs_dev_get_wwn(struct tcmu_device *dev);
int tcmur_dev_update_size(struct tcmu_device *dev, uint64_t new_size);
void tcmu_notify_conn_lost(struct tcmu_device *dev);
void tcmu_notify_lock_lost(struct tcmu_device *dev);
void tcmu_notify_cmd_timed_out(struct tcmu_device *dev);

int tcmu_cdb_get_length(uint8_t *cdb);
uint64_t tcmu_cdb_get_lba(uint8_t *cdb);
uint32_t tcmu_cdb_get_xfer_length(uint8_t *cdb);
uint64_t tcmu_cdb_to_byte(struct tcmu_device *dev, uint8_t *cdb);
off_t tcmu_iovec_compare(void *mem, struct iovec *iovec, size_t size);
size_t tcmu_iovec_seek(struct iovec *iovec, size_t count);
void tcmu_iovec_zero(struct iovec *iovec, size_t iov_cnt);
bool tcmu_iovec_zeroed(struct iovec *iovec, size_t iov_cnt);
size_t tcmu_iovec_length(struct iovec *iovec, size_t iov_cnt);
size_t tcmu_memcpy_into_iovec(struct iovec *iovec, size_t iov_cnt, void *src, size_t len);
size_t tcmu_memcpy_from_iovec(void *dest, size_t len, struct iovec *iovec, size_t iov_cnt);
void tcmu_cmd_seek(struct tcmulib_cmd *cmd, size_t count);
int tcmu_sense_set_data(uint8_t *sense_buf, uint8_t key, uint16_t asc_ascq);
void __tcmu_sense_set_data(uint8_t *sense_buf, uint8_t key, uint16_t asc_ascq);
void tcmu_sense_set_info(uint8_t *sense_buf, uint32_t info);
void tcmu_sense_set_key_specific_info(uint8_t *sense_buf, uint16_t info);

void tcmu_set_thread_name(const char *prefix, struct tcmu_device *dev);
/* Puts the name of a log file into `path`, of PATH_MAX bytes. */
int tcmu_make_absolute_logfile(char *path, const char *filename);

#define TCMU_LOG_ATTR __attribute__((format(printf, 4, 5)))
void tcmu_crit_message(struct tcmu_device *dev, const char *func, int line, const char *fmt, ...) TCMU_LOG_ATTR;
void tcmu_err_message(struct tcmu_device *dev, const char *func, int line, const char *fmt, ...) TCMU_LOG_ATTR;
void tcmu_warn_message(struct tcmu_device *dev, const char *func, int line, const char *fmt, ...) TCMU_LOG_ATTR;
void tcmu_info_message(struct tcmu_device *dev, const char *func, int line, const char *fmt, ...) TCMU_LOG_ATTR;
void tcmu_dbg_message(struct tcmu_device *dev, const char *func, int line, const char *fmt, ...) TCMU_LOG_ATTR;
void tcmu_dbg_scsi_cmd_message(struct tcmu_device *dev, const char *func, int line, const char *fmt, ...)
	TCMU_LOG_ATTR;

#endif
