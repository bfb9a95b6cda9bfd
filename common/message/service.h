// InferenceService: the one interface between whoever takes requests in (HTTP, shared memory, the
// pool connection) and whoever answers (a local model, the edge's placement, the router). It makes
// the parts composable: the HTTP surface of router and edge is the same code over different
// services.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/idle_work.h"
#include "common/message/event.h"
#include "common/message/request.h"

namespace updraft {

struct ModelInfo {
  std::string id;              // name clients use
  std::string digest;          // of the file, see Model::digest()
  std::string quantization;    // "Q4_0"
  int32_t context_tokens = 0;  // prompt + answer, as served
  int64_t created = 0;         // unix seconds
  bool images = false;         // accepts image parts
  // Values of one row of input embeddings; 0: none are taken under this name. Known on the model's
  // own node alone: such rows do not travel.
  int32_t embedding_dim = 0;
};

class InferenceService {
 public:
  virtual ~InferenceService() = default;

  // Any thread. Takes the request; every submit is answered by exactly one end event through `sink`
  // (Finished or RequestError), also when the service is full, draining or stopping. `sink` may run
  // before submit() returns.
  virtual void submit(Request request, EventSink sink) = 0;

  // Any thread. A request has been seen but not read yet: whoever sleeps may wake up meanwhile. A
  // hint; nothing may depend on it.
  virtual void expect() {}

  // Any thread. Requests come from there (submit() within its calls): a service with a thread of
  // its own for them may look itself while that has nothing to do. One at a time; null ends it, and
  // a call that runs may end later. A hint, too.
  virtual void look_while_idle(std::shared_ptr<IdleWork> origin) { (void)origin; }

  // Any thread. The client left: generation stops at the next step, the sink receives kCancelled
  // (if it had no end yet). Unknown or ended ids are ignored.
  virtual void cancel(const RequestId& id) = 0;

  // Any thread. The client does not keep up with the answer: no more of it until resume(). A
  // service that cannot stop (somebody else generates) ignores both and goes on; so does anybody
  // for an id that is unknown or ended.
  virtual void pause(const RequestId& id) { (void)id; }
  virtual void resume(const RequestId& id) { (void)id; }

  // Any thread, and cheap. While memory is so full that no new request is taken, whatever it asks
  // for: what each is answered, so that it can be said before a request is read. Else nothing, and
  // submit() decides.
  virtual std::optional<RequestError> short_of_memory() const { return std::nullopt; }

  // Any thread. Models that can be asked for now.
  virtual std::vector<ModelInfo> models() const = 0;

  // Any thread. True when requests can be served (for /readyz); `why_not` gets one line otherwise.
  virtual bool ready(std::string* why_not) const = 0;
};

}  // namespace updraft
