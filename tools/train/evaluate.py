#!/usr/bin/env python3
"""Measures the demo model through an OpenAI-compatible endpoint: exact answers at temperature 0.

Standard library only. Every request is a held-out conversation of conversations.py; the tier that
served it is read from the response header x-updraft-tier.

    python3 tools/train/evaluate.py --url http://127.0.0.1:8080/v1 --instructions 500 --logs 200
"""

import argparse
import collections
import http.client
import json
import sys
import time
import urllib.error
import urllib.request

import conversations

TASKS = ("instructions", "logs")


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description="Exact-match scores through an endpoint.")
    parser.add_argument("--url", required=True, help="base address, such as http://host:port/v1")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--model", default="updraft-demo")
    parser.add_argument("--instructions", type=int, default=500, help="how many (default 500)")
    parser.add_argument("--logs", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout-s", type=float, default=120)
    parser.add_argument("--min-instructions", type=float, default=0.95)
    parser.add_argument("--min-logs", type=float, default=0.85)
    parser.add_argument("--logs-tier", default="cloud",
                        help="tier that must serve every log; empty: any (default cloud)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="no mismatches, no progress")
    return parser.parse_args(arguments)


def complete(options, messages):
    """(answer, tier, error) of one request. A refusal by the server is an error text."""
    body = json.dumps({"model": options.model, "messages": messages, "temperature": 0,
                       "max_tokens": 80}).encode()
    headers = {"Content-Type": "application/json"}
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    request = urllib.request.Request(options.url.rstrip("/") + "/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=options.timeout_s) as response:
            tier = response.headers.get("x-updraft-tier", "")
            reply = json.load(response)
        return reply["choices"][0]["message"]["content"] or "", tier, ""
    except urllib.error.HTTPError as error:
        text = error.read(300).decode(errors="replace")
        return "", error.headers.get("x-updraft-tier", ""), f"HTTP {error.code}: {text}"
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        return "", "", f"{type(error).__name__}: {error}"


def run_task(options, task, count, say):
    """Asks `count` held-out conversations. Returns a dict of results."""
    right, errors, mismatches = 0, 0, []
    tiers, kinds = collections.Counter(), collections.defaultdict(lambda: [0, 0])
    started = time.monotonic()
    for number, test in enumerate(conversations.held_out(task, count, options.seed), 1):
        answer, tier, error = complete(options, test.messages())
        tiers[tier or "unknown"] += 1
        kinds[test.kind][1] += 1
        errors += bool(error)
        if not error and answer == test.answer:
            right += 1
            kinds[test.kind][0] += 1
        else:
            mismatch = {"number": number, "kind": test.kind, "tier": tier,
                        "asked": test.turns[-1].user.splitlines()[-1], "expected": test.answer,
                        "answered": error or answer}
            mismatches.append(mismatch)
            say(f"  mismatch {task} {number} ({test.kind}, {tier or 'no tier'}): "
                f"{mismatch['asked']!r}\n    expected {test.answer}\n"
                f"    answered {error or answer}")
        if number % 25 == 0 or number == count:
            say(f"{task}: {number}/{count} asked, {right} exact, "
                f"{time.monotonic() - started:.1f} s")
    return {"asked": count, "exact": right, "share": right / count, "errors": errors,
            "tiers": dict(tiers), "kinds": dict(kinds), "mismatches": mismatches,
            "seconds": round(time.monotonic() - started, 3)}


def failures(options, results):
    """Why the run is below its thresholds; empty when it is not."""
    out = []
    for task, result in results.items():
        least = getattr(options, f"min_{task}")
        if result["share"] < least:
            out.append(f"{task}: {result['share']:.3f} exact is below {least}")
        if result["errors"]:
            out.append(f"{task}: {result['errors']} requests failed")
    if options.logs_tier and "logs" in results:
        elsewhere = {t: n for t, n in results["logs"]["tiers"].items() if t != options.logs_tier}
        if elsewhere:
            out.append(f"logs: served by {elsewhere}, not by {options.logs_tier}")
    return out


def main():
    options = parse_arguments()
    talkative = not (options.json or options.quiet)
    say = (lambda text: print(text, flush=True)) if talkative else (lambda text: None)
    results = {task: run_task(options, task, getattr(options, task), say)
               for task in TASKS if getattr(options, task) > 0}
    failed = failures(options, results)
    if options.json:
        print(json.dumps({"results": results, "failures": failed, "passed": not failed}))
    else:
        summary = "; ".join(
            f"{task} {r['exact']}/{r['asked']} exact ({r['share']:.3f}), tiers "
            + " ".join(f"{tier}={n}" for tier, n in sorted(r["tiers"].items()))
            for task, r in results.items())
        print(f"{'FAILED' if failed else 'passed'}: {summary}"
              + "".join(f"\n  {reason}" for reason in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
