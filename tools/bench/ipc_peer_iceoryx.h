// iceoryx as a peer of `updraft bench ipc`, where it was installed when this was built; else no
// peer (no_ipc_peer_iceoryx.cpp).
//
// Its runtime is one per process and does not survive fork(): both sides are this program, executed
// anew, and its daemon (iox-roudi) runs for the time of one measurement.
#pragma once

#include <string>
#include <vector>

#include "tools/bench/ipc_bench.h"

namespace updraft {

// None where the build has no iceoryx.
std::vector<IpcPeer> iceoryx_peers();

// What a process of either side does, as measure() told it: "SIDE,TEST,SPINS,BYTES,SAMPLE_NS".
// Returns its exit status; the client's side prints its figures.
int run_iceoryx_side(const std::string& what);

}  // namespace updraft
