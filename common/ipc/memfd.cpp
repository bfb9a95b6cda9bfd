// See the header.
#include "common/ipc/memfd.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <boost/interprocess/exceptions.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>

namespace updraft::ipc {

namespace bip = boost::interprocess;

namespace {

// What boost::interprocess::mapped_region wants to know of a descriptor that it does not own.
struct MemfdHandle {
  int fd;
  bip::mapping_handle_t get_mapping_handle() const {
    return bip::ipcdetail::mapping_handle_from_file_handle(fd);
  }
};

// "always within_size [advise] never deny force"
bool shared_memory_may_be_huge() {
  static const bool may = [] {
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    std::string text;
    std::getline(file, text);
    for (const char* on : {"[always]", "[within_size]", "[advise]", "[force]"}) {
      if (text.find(on) != std::string::npos) return true;
    }
    return false;
  }();
  return may;
}

}  // namespace

std::string system_error(const std::string& what) { return what + ": " + std::strerror(errno); }

Result<UniqueFd> make_memfd(const char* name, uint64_t bytes, unsigned flags) {
  UniqueFd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | flags));
  if (!fd) return fail(system_error("memfd_create"));
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    return fail(system_error("sizing a segment to " + std::to_string(bytes) + " bytes"));
  return fd;
}

Result<bip::mapped_region> map_memfd(const UniqueFd& fd, uint64_t bytes, MapFor use) {
  try {
    return bip::mapped_region(MemfdHandle{fd.get()},
                              use == MapFor::kWriting ? bip::read_write : bip::read_only, 0, bytes);
  } catch (const bip::interprocess_exception& error) {
    return fail("mapping " + std::to_string(bytes) + " bytes of a segment: " + error.what());
  }
}

Result<bip::mapped_region> map_and_fill(const UniqueFd& fd, uint64_t bytes, bool& transparent) {
  Result<bip::mapped_region> region = map_memfd(fd, bytes, MapFor::kWriting);
  if (!region) return region;
  // Before any page is there: pages that were taken small stay small.
  transparent = ask_for_huge_pages(region->get_address(), bytes);
  // Kernels before 5.14 do not know it, and fault in later what is taken below.
  (void)madvise(region->get_address(), bytes, MADV_POPULATE_WRITE);
  if (fallocate(fd.get(), 0, 0, static_cast<off_t>(bytes)) != 0)
    return fail(system_error("taking " + std::to_string(bytes) + " bytes for a segment"));
  return region;
}

bool is_hugetlb(const UniqueFd& fd) {
  struct statfs info {};
  return fstatfs(fd.get(), &info) == 0 && info.f_type == HUGETLBFS_MAGIC;
}

bool ask_for_huge_pages(void* at, uint64_t bytes) {
  return bytes >= kHugePageBytes && shared_memory_may_be_huge() &&
         madvise(at, bytes, MADV_HUGEPAGE) == 0;
}

}  // namespace updraft::ipc
