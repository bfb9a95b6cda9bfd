// A fiber's first steps go through ucontext; every later switch is the compiler's __builtin_setjmp
// and __builtin_longjmp, which save three words and, unlike swapcontext, make no system call.
#include "kernels/simt/fiber.h"

#include <ucontext.h>

#include "common/base/check.h"
#include "kernels/simt/sanitizers.h"

namespace updraft::simt {
namespace {

thread_local Fiber* g_left = nullptr;      // who switched last
thread_local Fiber* g_starting = nullptr;  // whose first steps come next

// In a function of its own, as the compiler asks: setjmp and longjmp must not share a frame.
[[gnu::noinline, gnu::no_sanitize("address"), gnu::no_sanitize("thread")]] void resume(
    void** saved) {
  __builtin_longjmp(saved, 1);
}

}  // namespace

Fiber::Fiber() : context_(own_context()) {}

Fiber::Fiber(size_t stack_bytes)
    : stack_(std::make_unique_for_overwrite<std::byte[]>(stack_bytes)),
      stack_bytes_(stack_bytes),
      stack_bottom_(stack_.get()),
      context_(make_context()) {}

Fiber::~Fiber() {
  if (stack_ == nullptr) return;
  allow(stack_.get(), stack_bytes_);
  drop_context(context_);
}

void Fiber::prepare(Entry entry, void* argument) {
  UPDRAFT_CHECK(stack_ != nullptr, "a fiber with a stack of its own");
  entry_ = entry;
  argument_ = argument;
  fresh_ = true;
  fake_stack_ = nullptr;
  allow(stack_.get(), stack_bytes_);  // frames that were abandoned left red zones
}

void Fiber::begin() {
  Fiber* self = g_starting;
  enter_stack(nullptr, &g_left->stack_bottom_, &g_left->stack_bytes_);
  self->entry_(self->argument_);
  UPDRAFT_CHECK(false, "a fiber's function never returns");
}

[[gnu::noinline, gnu::no_sanitize("address"), gnu::no_sanitize("thread")]] void Fiber::start(
    Fiber& to) {
  to.fresh_ = false;
  g_starting = &to;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = to.stack_.get();
  context.uc_stack.ss_size = to.stack_bytes_;
  context.uc_link = nullptr;
  makecontext(&context, &Fiber::begin, 0);
  enter_context(to.context_);
  setcontext(&context);
}

[[gnu::noinline, gnu::no_sanitize("address"), gnu::no_sanitize("thread")]] void Fiber::switch_to(
    Fiber& from, Fiber& to) {
  g_left = &from;
  leave_stack(&from.fake_stack_, to.stack_bottom_, to.stack_bytes_);
  if (__builtin_setjmp(from.saved_) == 0) {
    if (to.fresh_) {
      start(to);
    } else {
      enter_context(to.context_);
      resume(to.saved_);
    }
  }
  // Only memory is trusted from here on: registers are those of whoever switched back.
  enter_stack(from.fake_stack_, &g_left->stack_bottom_, &g_left->stack_bytes_);
}

}  // namespace updraft::simt
