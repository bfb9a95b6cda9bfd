// Streams, events and graphs of an emulated device. Work given to a stream runs later: when
// somebody waits for it, or at some moment before that a seed chooses. So what a host or another
// stream does too early shows: a staging buffer written anew before it was copied, a copy that
// nobody waited for, memory freed under a kernel.
//
// Any thread may call; the work of one device runs one piece at a time, on the thread that is
// calling.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"

struct CUstream_st;  // CUDA's names: handles of either kind look the same to who launches kernels
struct CUevent_st;

namespace updraft::simt {

using Work = std::function<Result<void>()>;

// When work runs.
enum class Eagerness : uint8_t {
  kMixed,   // at moments that the seed chooses, streams in a random order
  kAtWait,  // only when it is waited for
  kAtOnce,  // as soon as what it waits for has happened
};
struct StreamOrder {
  Eagerness eagerness = Eagerness::kMixed;
  uint64_t seed = 1;
};

// The streams of one device.
class StreamSet;
std::shared_ptr<StreamSet> make_stream_set();
// For the work given from now on.
void set_order(StreamSet& set, const StreamOrder& order);
// True while one of its streams is being captured.
bool capturing(StreamSet& set);

CUstream_st* make_stream(const std::shared_ptr<StreamSet>& set);
// Runs what it still has.
void destroy_stream(CUstream_st* stream);

// Null: runs now. Errors: of the work, where it ran by now; else the next wait has them.
Result<void> submit(CUstream_st* stream, Work work);
// Errors: the first of all work of the device that ran; it stays, as it does on a GPU.
Result<void> wait(CUstream_st* stream);

CUevent_st* make_event();
void destroy_event(CUevent_st* event);
// The event happens when the stream's work so far is done.
Result<void> record(CUevent_st* event, CUstream_st* stream);
// Work given to the stream from now on runs behind the event's last record; none: at once.
Result<void> wait_event(CUstream_st* stream, CUevent_st* event);
Result<void> wait(CUevent_st* event);
// False: recorded and not yet happened.
bool happened(CUevent_st* event);

// Between the two, work is kept and not run. Errors: waits meanwhile, events of other streams.
Result<void> begin_capture(CUstream_st* stream);
Result<std::vector<Work>> end_capture(CUstream_st* stream);

}  // namespace updraft::simt
