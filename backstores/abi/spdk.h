/* What the SPDK backstore uses of SPDK, for bindgen. The headers are those that pkg-config finds. */
#include <spdk/bdev.h>
#include <spdk/env.h>
#include <spdk/init.h>
#include <spdk/log.h>
#include <spdk/rpc.h>
#include <spdk/thread.h>
#include <spdk/version.h>

/* Macros that bindgen cannot see the value of. */
static const uint32_t SCST_SPDK_RPC_RUNTIME = SPDK_RPC_RUNTIME;
static const uint32_t SCST_SPDK_VERSION = SPDK_VERSION_MAJOR * 100 + SPDK_VERSION_MINOR;

_Static_assert(SPDK_VTOPHYS_ERROR == UINT64_MAX, "ffi/dma.rs relies on it");
