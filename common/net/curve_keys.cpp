// CURVE key pairs and their files. A key file is two lines, "public <40 characters>" and "secret
// <40 characters>", and must be readable by its owner alone; lines that begin with "# " are
// comments.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <sstream>

#include "common/base/check.h"
#include "common/net/pool_socket.h"

namespace updraft {
namespace {

constexpr size_t kKeyChars = 40;
constexpr size_t kFileBytesMax = 4096;
constexpr size_t kAllowedKeysMax = 65536;

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

std::string system_error() { return std::strerror(errno); }

std::string octal(mode_t mode) {
  char text[8];
  std::snprintf(text, sizeof text, "%04o", static_cast<unsigned>(mode & 07777));
  return text;
}

// forbidden_mode: permission bits that must not be set; origin: where such a file comes from. Looks
// at the opened file, not at the name, so that it cannot be exchanged in between.
Result<std::string> read_key_file(const std::string& path, mode_t forbidden_mode,
                                  const char* advice, const std::string& origin) {
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) {
    const bool absent = errno == ENOENT;
    return fail("key file " + path + ": " + system_error() + (absent ? " (" + origin + ")" : ""));
  }
  struct stat info {};
  if (fstat(file.get(), &info) != 0) return fail("key file " + path + ": " + system_error());
  if (!S_ISREG(info.st_mode)) return fail("key file " + path + ": not a regular file");
  if ((info.st_mode & forbidden_mode) != 0) {
    return fail("key file " + path + ": mode " + octal(info.st_mode) + " " + advice);
  }
  std::string text(kFileBytesMax + 1, '\0');
  size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t got = read(file.get(), text.data() + filled, text.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail("key file " + path + ": " + system_error());
    if (got == 0) break;
    filled += static_cast<size_t>(got);
  }
  if (filled > kFileBytesMax)
    return fail("key file " + path + ": larger than " + std::to_string(kFileBytesMax) + " bytes");
  text.resize(filled);
  return text;
}

Result<std::map<std::string, std::string>> parse_key_file(const std::string& path,
                                                          const std::string& text) {
  std::map<std::string, std::string> keys;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty() || line.rfind("# ", 0) == 0) continue;
    const size_t space = line.find(' ');
    const std::string word = line.substr(0, space);
    const std::string where = "key file " + path + ":" + std::to_string(number) + ": ";
    if (space == std::string::npos || (word != "public" && word != "secret")) {
      return fail(where + "expected \"public <key>\" or \"secret <key>\"");
    }
    const std::string key = line.substr(space + 1);
    std::array<uint8_t, 32> raw{};
    if (key.size() != kKeyChars || zmq_z85_decode(raw.data(), key.c_str()) == nullptr) {
      return fail(where + "the " + word + " key is not 40 characters of Z85");
    }
    if (!keys.emplace(word, key).second) return fail(where + "a second " + word + " key");
  }
  return keys;
}

Result<void> write_file(const std::string& path, const std::string& text, mode_t mode) {
  const FileDescriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
  if (file.get() < 0) return fail("key file " + path + ": " + system_error());
  size_t written = 0;
  while (written < text.size()) {
    const ssize_t put = write(file.get(), text.data() + written, text.size() - written);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return fail("key file " + path + ": " + system_error());
    written += static_cast<size_t>(put);
  }
  if (fchmod(file.get(), mode) != 0 || fsync(file.get()) != 0)
    return fail("key file " + path + ": " + system_error());
  return {};
}

bool is_key_name(const std::string& name) {
  return !name.empty() && name.size() <= 64 &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
         });
}

}  // namespace

CurveKeys new_curve_keys() {
  char public_key[kKeyChars + 1];
  char secret_key[kKeyChars + 1];
  UPDRAFT_CHECK(zmq_curve_keypair(public_key, secret_key) == 0, "libzmq was built without CURVE");
  return {public_key, secret_key};
}

Result<void> save_curve_keys(const CurveKeys& keys, const std::string& path) {
  if (auto done =
          write_file(path,
                     "# Updraft pool key. Keep this file to its owner (mode 0600).\npublic " +
                         keys.public_key + "\nsecret " + keys.secret_key + "\n",
                     0600);
      !done) {
    return done;
  }
  return write_file(path + ".pub", "public " + keys.public_key + "\n", 0644);
}

Result<CurveKeys> load_curve_keys(const std::string& path) {
  const auto text = read_key_file(path, 0077, "lets others at a secret key; chmod 0600 it",
                                  "make it with: updraft keys new " + path);
  if (!text) return text.error();
  const auto keys = parse_key_file(path, *text);
  if (!keys) return keys.error();
  if (!keys->contains("secret") || !keys->contains("public")) {
    return fail("key file " + path + ": needs a \"public\" and a \"secret\" line");
  }
  char derived[kKeyChars + 1];
  if (zmq_curve_public(derived, keys->at("secret").c_str()) != 0 || keys->at("public") != derived) {
    return fail("key file " + path + ": the public key does not belong to the secret key");
  }
  return CurveKeys{keys->at("public"), keys->at("secret")};
}

Result<std::string> load_public_key(const std::string& path) {
  const auto text = read_key_file(path, 0002, "lets anybody exchange the key; chmod o-w it",
                                  "the .pub file that updraft keys new wrote on the machine whose "
                                  "key it is");
  if (!text) return text.error();
  const auto keys = parse_key_file(path, *text);
  if (!keys) return keys.error();
  if (keys->contains("secret"))
    return fail("key file " + path + ": holds a secret key where a public one is expected");
  if (!keys->contains("public")) return fail("key file " + path + ": needs a \"public\" line");
  return keys->at("public");
}

Result<std::vector<AllowedKey>> load_allowed_keys(const std::string& folder) {
  std::error_code error;
  std::filesystem::directory_iterator files(folder, error);
  if (error) return fail("folder of allowed keys " + folder + ": " + error.message());
  std::vector<AllowedKey> allowed;
  std::map<std::string, std::string> name_of;
  for (; files != std::filesystem::directory_iterator(); files.increment(error)) {
    if (files->path().extension() != ".pub") continue;
    const std::string path = files->path().string();
    AllowedKey entry;
    entry.name = files->path().stem().string();
    if (!is_key_name(entry.name))
      return fail("key file " + path + ": the name is not 1..64 letters, digits, '-', '_' or '.'");
    auto key = load_public_key(path);
    if (!key) return key.error();
    entry.public_key = std::move(*key);
    const auto [at, is_new] = name_of.emplace(entry.public_key, entry.name);
    if (!is_new) return fail("key file " + path + ": the same key as " + at->second + ".pub");
    if (allowed.size() >= kAllowedKeysMax) {
      return fail("folder of allowed keys " + folder + ": more than " +
                  std::to_string(kAllowedKeysMax) + " keys");
    }
    allowed.push_back(std::move(entry));
  }
  if (error) return fail("folder of allowed keys " + folder + ": " + error.message());
  std::sort(allowed.begin(), allowed.end(),
            [](const AllowedKey& a, const AllowedKey& b) { return a.name < b.name; });
  return allowed;
}

}  // namespace updraft
