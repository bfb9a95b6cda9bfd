// Text in, text out; the folder is locked while one process reads, joins and renames.
#include "kernels/cuda/choices_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

namespace updraft::cuda {
namespace {

namespace fs = std::filesystem;
constexpr size_t kFileBytesMax = size_t{4} << 20;  // tens of thousands of shapes
constexpr const char* kTitle = "updraft choices of products, 1\n";

// FNV-1a: against a disk's faults and editors, not against an attacker, who could as well replace
// the program.
uint64_t sum_of(std::string_view text) {
  uint64_t sum = 0xCBF29CE484222325ULL;
  for (const char c : text) sum = (sum ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  return sum;
}
std::string hexadecimal(uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

std::string head_of(const ChoicesOf& of) {
  return std::string(kTitle) + "device " + of.device + "\ncapability " + of.capability +
         "\ndriver " + of.driver + "\nlibrary " + of.library + "\nbuild " + of.build +
         "\nactivations " + of.activations + "\n";
}

std::string body_of(const ChoiceLines& lines) {
  std::string out;
  for (const auto& [key, line] : lines) out += line + "\n";
  return out;
}

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File() {
    if (descriptor_ >= 0) (void)::close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int get() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }
  bool close() { return ::close(std::exchange(descriptor_, -1)) == 0; }

 private:
  int descriptor_;
};

Error failed(const std::string& path, const char* what) {
  return fail("choices of products: " + path + ": " + what + ": " + std::strerror(errno));
}

bool write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t put = ::write(descriptor, text.data(), text.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    text.remove_prefix(static_cast<size_t>(put));
  }
  return true;
}

}  // namespace

ChoiceLines choice_lines(std::string_view choices_text) {
  ChoiceLines out;
  while (!choices_text.empty()) {
    const size_t end = choices_text.find('\n');
    const std::string_view line = choices_text.substr(0, end);
    choices_text =
        end == std::string_view::npos ? std::string_view() : choices_text.substr(end + 1);
    size_t key = 0;
    for (int word = 0; word < 4 && key != std::string_view::npos; ++word) {
      key = line.find(' ', key == 0 ? 0 : key + 1);
    }
    if (line.empty()) continue;
    out.emplace(line.substr(0, key), line);
  }
  return out;
}

std::string choices_path(const std::string& folder, const ChoicesOf& of) {
  return (fs::path(folder) / ("products-" + hexadecimal(sum_of(head_of(of))) + ".txt")).string();
}

Result<ChoiceLines> read_choices(const std::string& path, const ChoicesOf& of) {
  const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.is_open()) {
    if (errno == ENOENT || errno == ENOTDIR) return ChoiceLines();
    return failed(path, "cannot be opened");
  }
  std::string text;
  char buffer[65536];
  while (true) {
    const ssize_t got = ::read(file.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed(path, "cannot be read");
    if (got == 0) break;
    text.append(buffer, static_cast<size_t>(got));
    if (text.size() > kFileBytesMax) {
      return fail("choices of products: " + path + ": more than " +
                  std::to_string(kFileBytesMax >> 20) + " MiB");
    }
  }
  const std::string head = head_of(of);
  if (!text.starts_with(kTitle)) {
    return fail("choices of products: " + path + ": no such file of this program");
  }
  if (!text.starts_with(head)) {
    return fail("choices of products: " + path + ": of another device, driver, library or build");
  }
  const size_t sum_end = text.find('\n', head.size());
  const std::string_view body = sum_end == std::string::npos
                                    ? std::string_view()
                                    : std::string_view(text).substr(sum_end + 1);
  const std::string expected = "sum " + hexadecimal(sum_of(body));
  if (sum_end == std::string::npos ||
      std::string_view(text).substr(head.size(), sum_end - head.size()) != expected) {
    return fail("choices of products: " + path + ": damaged, its sum is not that of its lines");
  }
  return choice_lines(body);
}

Result<void> add_choices(const std::string& path, const ChoicesOf& of, const ChoiceLines& lines) {
  const fs::path folder = fs::path(path).parent_path();
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    return fail("choices of products: " + folder.string() + ": cannot be made: " + error.message());
  }
  const File lock(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock.is_open()) return failed(folder.string(), "cannot be opened");
  if (::flock(lock.get(), LOCK_EX) != 0) return failed(folder.string(), "cannot be locked");
  ChoiceLines joined = lines;
  if (const auto before = read_choices(path, of)) joined.insert(before->begin(), before->end());
  const std::string body = body_of(joined);
  const std::string part = path + ".part";
  File file(::open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file.is_open()) return failed(part, "cannot be made");
  // On the disk before it gets its name: a power cut leaves the old file or the whole new one.
  const bool written =
      write_all(file.get(), head_of(of) + "sum " + hexadecimal(sum_of(body)) + "\n" + body) &&
      ::fsync(file.get()) == 0 && file.close();
  if (!written) {
    const Error failure = failed(part, "cannot be written");
    (void)::unlink(part.c_str());
    return failure;
  }
  if (::rename(part.c_str(), path.c_str()) != 0) {
    const Error failure = failed(path, "cannot be renamed into place");
    (void)::unlink(part.c_str());
    return failure;
  }
  return {};
}

}  // namespace updraft::cuda
