// A fiber: a stack that a function runs on until it switches to another. The emulator runs each
// CUDA thread of a block on one; all belong to the operating-system thread that made them.
#pragma once

#include <cstddef>
#include <memory>

namespace updraft::simt {

class Fiber {
 public:
  using Entry = void (*)(void* argument);

  // Stands for the calling thread and its own stack: what the others return to.
  Fiber();
  explicit Fiber(size_t stack_bytes);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber calls entry(argument) from the beginning, and `entry` never
  // returns. Whatever the fiber was doing is forgotten: no destructors run.
  void prepare(Entry entry, void* argument);

  // Goes on in `to`; returns when somebody switches back to `from`, which is the fiber that runs
  // now.
  static void switch_to(Fiber& from, Fiber& to);

 private:
  static void begin();
  static void start(Fiber& to);

  std::unique_ptr<std::byte[]> stack_;
  size_t stack_bytes_ = 0;
  const void* stack_bottom_ = nullptr;
  void* saved_[5] =
      {};  // frame, resume address and stack pointer, as the compiler's __builtin_setjmp wants them
  Entry entry_ = nullptr;
  void* argument_ = nullptr;
  bool fresh_ = false;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* context_ = nullptr;     // ThreadSanitizer's
};

}  // namespace updraft::simt
