// What taking in beats costs without encryption: a ROUTER socket without CURVE in front of the
// router's own reader and core. The pool's real socket is always encrypted; this is the floor that
// encryption stands on.
#pragma once

#include <cstdint>

#include "common/base/result.h"

namespace updraft {

struct PlainBeats {
  int nodes = 0;
  double applied_per_s = 0;
  double applied_per_core_s = 0;  // by second of this process's processor time
};
// `nodes` connections of a second process, on core `sender_core`, beat as fast as they can for
// `for_ns`. Call it before other threads are started (it forks). Errors: sockets.
Result<PlainBeats> measure_plain_beats(int nodes, int64_t for_ns, int sender_core);

}  // namespace updraft
