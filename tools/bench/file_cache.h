// Reading a file as fast as the disk or the page cache gives it: what loading a model is compared
// with.
#pragma once

#include <string>

#include "common/base/result.h"

namespace updraft {

// Seconds that reading all of the file takes.
Result<double> read_file_seconds(const std::string& path);

// Asks the system to forget the file's cached pages (those that nobody has mapped).
Result<void> drop_file_cache(const std::string& path);

// The most memory that this process has had resident, in bytes.
uint64_t peak_resident_bytes();

}  // namespace updraft
