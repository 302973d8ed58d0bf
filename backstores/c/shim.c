/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What handler plug-ins import and Rust cannot define: variadic functions. And two calls of the C library, whose memory
 * or thread belongs to the plug-in.
 */
#define _GNU_SOURCE
#include "tcmu-runner.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Longer messages are cut. */
#define LINE_MAX_LEN 1024

/* In src/tcmur/ffi/exports.rs. */
void scst_tcmur_log(struct tcmu_device *dev, int level, const char *func, int line, const char *text);
int scst_tcmur_log_enabled(int level);

enum { CRIT, ERR, WARN, INFO, DBG, TRACE };

static void emit(struct tcmu_device *dev, int level, const char *func, int line, const char *fmt, va_list args)
{
	char text[LINE_MAX_LEN];

	if (!fmt || !scst_tcmur_log_enabled(level))
		return;
	if (vsnprintf(text, sizeof(text), fmt, args) < 0)
		return;
	scst_tcmur_log(dev, level, func, line, text);
}

#define DEFINE_LOG(name, level)                                                                   \
	void name(struct tcmu_device *dev, const char *func, int line, const char *fmt, ...)      \
	{                                                                                         \
		va_list args;                                                                     \
                                                                                                  \
		va_start(args, fmt);                                                              \
		emit(dev, level, func, line, fmt, args);                                          \
		va_end(args);                                                                     \
	}

DEFINE_LOG(tcmu_crit_message, CRIT)
DEFINE_LOG(tcmu_err_message, ERR)
DEFINE_LOG(tcmu_warn_message, WARN)
DEFINE_LOG(tcmu_info_message, INFO)
DEFINE_LOG(tcmu_dbg_message, DBG)
DEFINE_LOG(tcmu_dbg_scsi_cmd_message, TRACE)

/* The plug-in frees it with free(). */
char *scst_tcmur_strdup(const char *text)
{
	return strdup(text);
}

void tcmu_set_thread_name(const char *prefix, struct tcmu_device *dev)
{
	char name[16];

	(void)dev;
	if (!prefix)
		return;
	snprintf(name, sizeof(name), "tcmur-%s", prefix);
	pthread_setname_np(pthread_self(), name);
}

/* Where the libraries of some handlers (Gluster's) write their own logs: with those of the server. */
int tcmu_make_absolute_logfile(char *path, const char *filename)
{
	(void)filename;
	strcpy(path, "/dev/stderr");
	return 0;
}
