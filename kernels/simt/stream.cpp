// Queues of work, and who runs how much of them when.
#include "kernels/simt/stream.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <optional>
#include <random>

#include "common/base/check.h"

namespace updraft::simt {
class StreamSet {
 public:
  std::recursive_mutex mutex;  // guards everything of the device's streams and events
  StreamOrder order;
  std::mt19937_64 random{1};
  std::vector<CUstream_st*> streams;
  std::optional<Error> error;
  bool running = false;  // work that submits work does not run it
};
}  // namespace updraft::simt

using updraft::Result;
namespace simt = updraft::simt;

// `recorded` counts records, `done` those that happened.
struct CUevent_st {
  std::shared_ptr<simt::StreamSet> set;  // of the stream that recorded it last
  CUstream_st* stream = nullptr;
  uint64_t recorded = 0;
  uint64_t done = 0;
};

struct CUstream_st {
  // A piece of work, or (with an event) a record of it, or a wait for one.
  struct Item {
    simt::Work work;
    CUevent_st* event = nullptr;
    uint64_t number = 0;  // of the event's record
    bool waits = false;
  };
  std::shared_ptr<simt::StreamSet> set;
  std::deque<Item> items;
  std::optional<std::vector<simt::Work>> captured;
};

namespace updraft::simt {
namespace {

bool ready(const CUstream_st& stream) {
  if (stream.items.empty()) return false;
  const CUstream_st::Item& item = stream.items.front();
  return !item.waits || item.event->done >= item.number;
}

// Runs the first item of a stream that is ready.
void run_one(CUstream_st& stream) {
  StreamSet& set = *stream.set;
  CUstream_st::Item item = std::move(stream.items.front());
  stream.items.pop_front();
  if (item.event != nullptr) {
    if (!item.waits) item.event->done = std::max(item.event->done, item.number);
    return;
  }
  if (set.error) return;  // after an error nothing runs any more
  set.running = true;
  const Result<void> result = item.work();
  set.running = false;
  if (!result) set.error = result.error();
}

// Runs the stream until it has at most `left` items, and of others what it waits for.
void run_until(CUstream_st& stream, size_t left) {
  while (stream.items.size() > left) {
    while (!ready(stream)) {
      CUevent_st& event = *stream.items.front().event;
      UPDRAFT_CHECK(event.stream != nullptr && event.stream != &stream,
                    "a stream waits for what is recorded");
      run_until(*event.stream, event.stream->items.size() - 1);
    }
    run_one(stream);
  }
}

void run_some(StreamSet& set) {
  if (set.running) return;
  switch (set.order.eagerness) {
    case Eagerness::kAtWait:
      return;
    case Eagerness::kAtOnce:
      for (bool ran = true; ran;) {
        ran = false;
        for (CUstream_st* stream : set.streams) {
          for (; ready(*stream); ran = true) run_one(*stream);
        }
      }
      return;
    case Eagerness::kMixed:
      if (set.random() % 8 != 0) return;
      for (uint64_t turns = set.random() % 16; turns > 0; --turns) {
        CUstream_st& stream = *set.streams[set.random() % set.streams.size()];
        if (ready(stream)) run_one(stream);
      }
      return;
  }
}

Result<void> result_of(const StreamSet& set) {
  if (set.error) return *set.error;
  return {};
}

}  // namespace

std::shared_ptr<StreamSet> make_stream_set() { return std::make_shared<StreamSet>(); }

void set_order(StreamSet& set, const StreamOrder& order) {
  const std::lock_guard lock(set.mutex);
  set.order = order;
  set.random.seed(order.seed);
}

bool capturing(StreamSet& set) {
  const std::lock_guard lock(set.mutex);
  return std::any_of(set.streams.begin(), set.streams.end(),
                     [](const CUstream_st* stream) { return stream->captured.has_value(); });
}

CUstream_st* make_stream(const std::shared_ptr<StreamSet>& set) {
  const std::lock_guard lock(set->mutex);
  auto* stream = new CUstream_st;
  stream->set = set;
  set->streams.push_back(stream);
  return stream;
}

void destroy_stream(CUstream_st* stream) {
  const std::shared_ptr<StreamSet> set = stream->set;
  const std::lock_guard lock(set->mutex);
  run_until(*stream, 0);
  set->streams.erase(std::find(set->streams.begin(), set->streams.end(), stream));
  delete stream;
}

Result<void> submit(CUstream_st* stream, Work work) {
  if (stream == nullptr) return work();
  StreamSet& set = *stream->set;
  const std::lock_guard lock(set.mutex);
  if (stream->captured) {
    stream->captured->push_back(std::move(work));
    return {};
  }
  stream->items.push_back({std::move(work)});
  run_some(set);
  return result_of(set);
}

Result<void> wait(CUstream_st* stream) {
  StreamSet& set = *stream->set;
  const std::lock_guard lock(set.mutex);
  if (capturing(set)) return fail("a wait for a stream while work is captured");
  run_until(*stream, 0);
  return result_of(set);
}

CUevent_st* make_event() { return new CUevent_st; }

void destroy_event(CUevent_st* event) {
  if (event->set) {
    // What still names it: records of no use to anybody, and waits that its stream must come to.
    const std::shared_ptr<StreamSet> set = event->set;
    const std::lock_guard lock(set->mutex);
    for (CUstream_st* stream : set->streams) {
      const auto names = [&](const CUstream_st::Item& item) { return item.event == event; };
      while (std::any_of(stream->items.begin(), stream->items.end(), names)) {
        run_until(*stream, stream->items.size() - 1);
      }
    }
  }
  delete event;
}

Result<void> record(CUevent_st* event, CUstream_st* stream) {
  StreamSet& set = *stream->set;
  const std::lock_guard lock(set.mutex);
  if (stream->captured) return fail("an event recorded in a stream that is being captured");
  event->set = stream->set;
  event->stream = stream;
  stream->items.push_back({{}, event, ++event->recorded, false});
  run_some(set);
  return result_of(set);
}

Result<void> wait_event(CUstream_st* stream, CUevent_st* event) {
  StreamSet& set = *stream->set;
  const std::lock_guard lock(set.mutex);
  if (stream->captured) return fail("a stream that is being captured waits for an event");
  if (event->recorded > event->done) {
    UPDRAFT_CHECK(event->set == stream->set, "an event of the same device");
    stream->items.push_back({{}, event, event->recorded, true});
    run_some(set);
  }
  return result_of(set);
}

Result<void> wait(CUevent_st* event) {
  if (!event->set) return {};
  StreamSet& set = *event->set;
  const std::lock_guard lock(set.mutex);
  if (capturing(set)) return fail("a wait for an event while work is captured");
  while (event->done < event->recorded) run_until(*event->stream, event->stream->items.size() - 1);
  return result_of(set);
}

bool happened(CUevent_st* event) {
  if (!event->set) return true;
  const std::lock_guard lock(event->set->mutex);
  return event->done >= event->recorded;
}

Result<void> begin_capture(CUstream_st* stream) {
  const std::lock_guard lock(stream->set->mutex);
  if (stream->captured) return fail("the stream is being captured already");
  stream->captured.emplace();
  return {};
}

Result<std::vector<Work>> end_capture(CUstream_st* stream) {
  const std::lock_guard lock(stream->set->mutex);
  if (!stream->captured) return fail("the stream is not being captured");
  std::vector<Work> out = std::move(*stream->captured);
  stream->captured.reset();
  return out;
}

}  // namespace updraft::simt
