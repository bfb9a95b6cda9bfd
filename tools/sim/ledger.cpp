// What clients see. The routers' side is in ledger_router.cpp.
#include "tools/sim/ledger.h"

#include <algorithm>

#include "common/base/clock.h"

namespace updraft::sim {
namespace {

// A request ends by its deadline and a second; what a link's or an engine's step adds.
constexpr int64_t kDeadlineGraceNs = kNsPerSecond + 100 * kNsPerMs;

std::string number(int64_t value) { return std::to_string(value); }

}  // namespace

ClientId Ledger::open_ticket(const Request& request, const SimModel& model, Entrance entrance) {
  const ClientId client = ++tickets_count_;
  Ticket ticket;
  ticket.id = request.id;
  ticket.model = &model;
  ticket.outcome.client = client;
  ticket.outcome.entrance = entrance;
  ticket.outcome.submitted_ns = world_.now_ns();
  ticket.outcome.prompt_tokens = count_tokens(request, model);
  ticket.content = content_hash(request);
  ticket.seeded = request.sampling.seed.has_value();
  ticket.ignores_end = request.sampling.ignore_eos;
  ticket.max_tokens = request.sampling.max_tokens.value_or(0);
  if (request.hints.deadline_ms > 0)
    ticket.deadline_ns = world_.now_ns() + request.hints.deadline_ms * kNsPerMs;
  ticket.paused_before_ns = paused_ns(entrance);
  ticket.choices.resize(static_cast<size_t>(total_choices(request)));
  world_.note("asks", request.id, static_cast<uint64_t>(ticket.outcome.prompt_tokens),
              static_cast<uint64_t>(request.hints.deadline_ms));
  const int64_t deadline_ns = ticket.deadline_ns;
  open_.emplace(client, std::move(ticket));
  if (deadline_ns > 0)
    world_.at(deadline_ns + kDeadlineGraceNs, [this, client] { check_deadline(client); });
  return client;
}

// Time in which the process at the entrance stood still, so far.
int64_t Ledger::paused_ns(Entrance entrance) const {
  const auto found = pauses_.find(entrance);
  if (found == pauses_.end()) return 0;
  const Pauses& pauses = found->second;
  return pauses.total_ns + (pauses.since_ns >= 0 ? world_.now_ns() - pauses.since_ns : 0);
}

void Ledger::set_paused(Entrance entrance, bool paused) {
  Pauses& pauses = pauses_[entrance];
  if (!paused && pauses.since_ns >= 0) pauses.total_ns += world_.now_ns() - pauses.since_ns;
  pauses.since_ns = paused ? world_.now_ns() : -1;
}

void Ledger::check_deadline(ClientId client) {
  const auto found = open_.find(client);
  if (found == open_.end()) return;
  const Ticket& ticket = found->second;
  const auto slack = slacks_.find(ticket.outcome.entrance);
  const int64_t excused_ns = paused_ns(ticket.outcome.entrance) - ticket.paused_before_ns +
                             (slack == slacks_.end() ? 0 : slack->second());
  const int64_t until_ns = ticket.deadline_ns + kDeadlineGraceNs + excused_ns;
  if (world_.now_ns() < until_ns) {
    world_.at(until_ns, [this, client] { check_deadline(client); });
    return;
  }
  const bool stands_still = pauses_[ticket.outcome.entrance].since_ns >= 0;
  if (stands_still) {
    world_.after(100 * kNsPerMs, [this, client] { check_deadline(client); });
    return;
  }
  world_.violate(invariant::kDeadline,
                 "request " + ticket.id + " has no end " +
                     number((world_.now_ns() - ticket.deadline_ns) / kNsPerMs) +
                     " ms after its deadline");
}

void Ledger::on_event(ClientId client, const Event& event) {
  const auto found = open_.find(client);
  if (found == open_.end()) {
    const auto over = over_.find(client);
    world_.violate(invariant::kOneEnd,
                   "request " +
                       (over == over_.end() ? "of client " + number(client) : over->second) +
                       " got an event after its end");
    return;
  }
  Ticket& ticket = found->second;
  if (const auto* started = std::get_if<Started>(&event)) {
    world_.note("started", ticket.id, hash_text(started->node_id) % 10'000);
    const auto facts = nodes_.find(started->node_id);
    if (facts == nodes_.end()) {
      // An edge that missed the beginning says the router's name.
      ticket.context_tokens = 0;
    } else {
      ticket.context_tokens = facts->second.context_tokens;
      ticket.outcome.tier = facts->second.tier;
    }
    ticket.started = true;
  } else if (const auto* chunk = std::get_if<TokenChunk>(&event)) {
    check_chunk(ticket, *chunk);
  } else if (const auto* finished = std::get_if<Finished>(&event)) {
    check_finished(ticket, *finished);
    ticket.outcome.finished = true;
    world_.note("finished", ticket.id, static_cast<uint64_t>(ticket.outcome.tokens));
    end_ticket(client);
  } else {
    const RequestError& error = std::get<RequestError>(event);
    check_error(ticket, error);
    ticket.outcome.error = error.code;
    world_.note("ends with an error", ticket.id, static_cast<uint64_t>(error.code));
    end_ticket(client);
  }
}

void Ledger::end_ticket(ClientId client) {
  const auto found = open_.find(client);
  Ticket& ticket = found->second;
  ticket.outcome.ended_ns = world_.now_ns();
  outcomes_.push_back(ticket.outcome);
  over_.emplace(client, ticket.id);
  open_.erase(found);
}

void Ledger::check_chunk(Ticket& ticket, const TokenChunk& chunk) {
  const auto broken = [&](const std::string& what) {
    world_.violate(invariant::kOracle,
                   "request " + ticket.id + ", choice " + number(chunk.choice) + ": " + what);
  };
  if (!ticket.started) return broken("tokens before the start");
  if (chunk.choice < 0 || static_cast<size_t>(chunk.choice) >= ticket.choices.size())
    return broken("there is no such choice");
  Choice& choice = ticket.choices[static_cast<size_t>(chunk.choice)];
  if (choice.finished) return broken("tokens after its end");
  if (chunk.offset != choice.next)
    return broken("offset " + number(chunk.offset) + " after " + number(choice.next) + " tokens");
  std::string text;
  for (const int32_t token : chunk.ids) {
    const int32_t generation = generation_of(token);
    if (ticket.generation < 0) ticket.generation = generation;
    if (generation != ticket.generation || (ticket.seeded && generation != 0))
      return broken("token " + number(choice.next) + " is of another run (" + number(generation) +
                    " after " + number(ticket.generation) + ")");
    if (token != token_at(ticket.content, chunk.choice, choice.next, generation))
      return broken("token " + number(choice.next) + " is " + number(token) +
                    ", which is not the request's");
    text += piece_of(token);
    ++choice.next;
  }
  if (chunk.text != text) return broken("the text is not that of its tokens");
  if (!chunk.ids.empty() && ticket.outcome.first_token_ns == 0)
    ticket.outcome.first_token_ns = world_.now_ns();
  ticket.outcome.tokens += static_cast<int32_t>(chunk.ids.size());
  if (!chunk.finish) return;
  choice.finished = true;
  const int32_t natural = natural_tokens(ticket.content, chunk.choice, *ticket.model);
  const bool stops = *chunk.finish == FinishReason::kStop;
  if (stops && (ticket.ignores_end || choice.next != natural))
    return broken("it stopped after " + number(choice.next) + " tokens instead of " +
                  number(natural));
  if (!stops) {
    const int32_t room = ticket.context_tokens > 0
                             ? ticket.context_tokens - ticket.outcome.prompt_tokens
                             : choice.next;
    const int32_t limit = ticket.max_tokens > 0 ? std::min(room, ticket.max_tokens) : room;
    if (choice.next != limit)
      return broken("it was cut after " + number(choice.next) + " tokens, its limit is " +
                    number(limit));
  }
}

void Ledger::check_finished(const Ticket& ticket, const Finished& finished) {
  for (const Choice& choice : ticket.choices) {
    if (choice.finished) continue;
    world_.violate(invariant::kOracle,
                   "request " + ticket.id + " finished before all of its answers had");
    return;
  }
  if (finished.usage.completion_tokens != ticket.outcome.tokens)
    world_.violate(invariant::kOracle, "request " + ticket.id + " was told of " +
                                           number(finished.usage.completion_tokens) +
                                           " tokens and got " + number(ticket.outcome.tokens));
}

void Ledger::check_error(const Ticket& ticket, const RequestError& error) {
  const auto code = error.code;
  const std::string what = "request " + ticket.id + " ended with code " +
                           number(static_cast<int64_t>(code)) + ": " + error.message;
  if (code == ErrorCode::kRejectedBusy || code == ErrorCode::kRejectedTooLong ||
      (code == ErrorCode::kCancelled && !ticket.outcome.cancelled))
    return world_.violate(invariant::kTypedEnd, what);
  if (code == ErrorCode::kOverloaded && error.retry_after_ms <= 0)
    return world_.violate(invariant::kTypedEnd, what + ", without a time to come back");
  const bool honest = code == ErrorCode::kOverloaded || code == ErrorCode::kRateLimited ||
                      code == ErrorCode::kDeadline || code == ErrorCode::kContextLength ||
                      code == ErrorCode::kModelNotFound || code == ErrorCode::kCancelled;
  if (calm_ && !honest) world_.violate(invariant::kCalm, what);
}

void Ledger::on_client_cancel(ClientId client) {
  const auto found = open_.find(client);
  if (found == open_.end()) return;
  found->second.outcome.cancelled = true;
  world_.note("client leaves", found->second.id);
}

void Ledger::after_router_cancel(ClientId client) {
  const auto found = open_.find(client);
  if (found == open_.end()) return;
  world_.violate(invariant::kCancel,
                 "request " + found->second.id + " goes on, though its client has left");
}

void Ledger::on_entrance_lost(Entrance entrance) {
  std::vector<ClientId> lost;
  for (const auto& [client, ticket] : open_) {
    if (ticket.outcome.entrance == entrance) lost.push_back(client);
  }
  for (const ClientId client : lost) {
    open_.at(client).outcome.error = ErrorCode::kNodeLost;
    end_ticket(client);
  }
  pauses_.erase(entrance);
}

std::string Ledger::describe_open() const {
  std::string out;
  int count = 0;
  for (const auto& [client, ticket] : open_) {
    if (++count > 4) return out + " ...";
    out += (count > 1 ? ", " : "") + ticket.id + (ticket.started ? " (started)" : "");
  }
  return out;
}

}  // namespace updraft::sim
