// What every kind of segment needs of a memfd: making, sizing and mapping it. Private to
// common/ipc.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstdint>
#include <string>

#include "common/base/result.h"
#include "common/ipc/segment.h"

namespace updraft::ipc {

inline constexpr uint64_t kSmallPageBytes = 4096;
inline constexpr uint64_t kHugePageBytes = 2 << 20;

// `what` and errno's text.
std::string system_error(const std::string& what);

// A sized, unsealed memfd without pages. flags: of memfd_create, besides close-on-exec and sealing.
Result<UniqueFd> make_memfd(const char* name, uint64_t bytes, unsigned flags = 0);

// A maker's mapping of it, with every page taken and faulted in: one by one in the middle of a
// request they would cost 0.6 ms per MiB. transparent: whether huge pages were asked for.
Result<boost::interprocess::mapped_region> map_and_fill(const UniqueFd& fd, uint64_t bytes,
                                                        bool& transparent);

enum class MapFor : uint8_t { kReading, kWriting };
// The other side's mapping of what is there.
Result<boost::interprocess::mapped_region> map_memfd(const UniqueFd& fd, uint64_t bytes,
                                                     MapFor use);

// True for memory from the pool of huge pages.
bool is_hugetlb(const UniqueFd& fd);
// Asks for transparent huge pages under a large mapping. True: the kernel may give them to shared
// memory (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
bool ask_for_huge_pages(void* at, uint64_t bytes);

}  // namespace updraft::ipc
