// The linker's note, found among the segments of the object that holds this very function.
#include "kernels/cuda/build_id.h"

#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstring>

namespace updraft::cuda {
namespace {

struct Search {
  uintptr_t inside = 0;
  std::string found;
};

constexpr size_t kNoteAlignment = 4;
size_t aligned(size_t bytes) {
  return (bytes + kNoteAlignment - 1) / kNoteAlignment * kNoteAlignment;
}

// The notes of one segment; those of GNU's build id are {name "GNU", type 3, the id's bytes}.
std::string id_in(const unsigned char* notes, size_t bytes) {
  size_t at = 0;
  while (at + sizeof(ElfW(Nhdr)) <= bytes) {
    ElfW(Nhdr) note;
    std::memcpy(&note, notes + at, sizeof note);
    const size_t name = at + sizeof note;
    const size_t id = name + aligned(note.n_namesz);
    const size_t next = id + aligned(note.n_descsz);
    if (next > bytes) break;
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 &&
        std::memcmp(notes + name, "GNU", 4) == 0) {
      constexpr const char* kDigits = "0123456789abcdef";
      std::string out;
      for (size_t i = 0; i < note.n_descsz; ++i) {
        out += kDigits[notes[id + i] / 16];
        out += kDigits[notes[id + i] % 16];
      }
      return out;
    }
    at = next;
  }
  return {};
}

int look(dl_phdr_info* object, size_t /*bytes*/, void* context) {
  auto& search = *static_cast<Search*>(context);
  bool holds = false;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    const uintptr_t first = object->dlpi_addr + segment.p_vaddr;
    holds = holds || (segment.p_type == PT_LOAD && search.inside >= first &&
                      search.inside < first + segment.p_memsz);
  }
  if (!holds) return 0;
  for (int i = 0; i < object->dlpi_phnum && search.found.empty(); ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    search.found =
        id_in(reinterpret_cast<const unsigned char*>(object->dlpi_addr + segment.p_vaddr),
              segment.p_memsz);
  }
  return 1;
}

}  // namespace

std::string build_id() {
  Search search;
  search.inside = reinterpret_cast<uintptr_t>(&build_id);
  dl_iterate_phdr(look, &search);
  return search.found.empty() ? UPDRAFT_VERSION : UPDRAFT_VERSION " " + search.found;
}

}  // namespace updraft::cuda
