// Choices of products (GemmDevice::choices_text()) on disk, so that a second start measures
// nothing. One file for each device, driver, library, build and kind of activations; it says in its
// head what it is of, and a sum guards the rest:
//
//   updraft choices of products, 1
//   device NVIDIA H200
//   capability 9.0
//   driver 13.0
//   library 130100
//   build 0.1.0 3f2a9c...
//   activations bf16
//   sum 8f3c5a1e00b2c4d7
//   Q4_0 4096 4096 128 tile
//   Q4_0 4096 4096 256 warpgroup 2
//   ...
//
// A choice's key is the text before its way: format, rows, columns, tokens.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace updraft::cuda {

// One-line texts.
struct ChoicesOf {
  std::string device;
  std::string capability;
  std::string driver;
  std::string library;
  std::string build;
  std::string activations;
};

// Whole lines by their key.
using ChoiceLines = std::map<std::string, std::string>;
ChoiceLines choice_lines(std::string_view choices_text);

// The folder's file for them.
std::string choices_path(const std::string& folder, const ChoicesOf& of);
// None: there is no such file. Errors: one that cannot be read, is not what was written, or is of
// something else; with its path.
Result<ChoiceLines> read_choices(const std::string& path, const ChoicesOf& of);
// Puts these in place of the ones that the file has for the same keys, and keeps its others. The
// file is replaced as a whole: who reads meanwhile, or after a crash, sees the one or the other.
// Makes the folder. Errors: with the path.
Result<void> add_choices(const std::string& path, const ChoicesOf& of, const ChoiceLines& lines);

}  // namespace updraft::cuda
