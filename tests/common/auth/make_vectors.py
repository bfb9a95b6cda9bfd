#!/usr/bin/env python3
"""Writes golden/jwt_vectors.json: tokens signed by PyJWT and cryptography (Debian: python3-jwt, python3-cryptography),
the examples of RFC 7515 A.1 and A.3 and RFC 8037 A.4, and what a verifier must say to each.

The keys are made anew at each run; nothing uses them but the test.
"""

import base64
import json
import pathlib

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

NOW = 1_800_000_000
AUDIENCE = "updraft"
ISSUER = "https://login.example"


def b64(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def pem(public_key):
    return public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def ec_key(x, y):
    return ec.EllipticCurvePublicNumbers(
        int.from_bytes(unb64(x), "big"), int.from_bytes(unb64(y), "big"), ec.SECP256R1()).public_key()


ED = ed25519.Ed25519PrivateKey.generate()
EC = ec.generate_private_key(ec.SECP256R1())
SECRET = bytes(range(40))
KEYS = {"EdDSA": ED, "ES256": EC, "HS256": SECRET}


def claims(**changes):
    made = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 600, "role": "developer", **changes}
    return {k: v for k, v in made.items() if v is not None}


def sign(alg="EdDSA", header=None, payload=None, kid=None):
    return jwt.encode(claims() if payload is None else payload, KEYS[alg], algorithm=alg,
                      headers={"kid": kid or alg.lower(), **(header or {})})


def raw(header, payload, signer):
    text = b64(json.dumps(header).encode()) + "." + b64(payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    return text + "." + b64(signer(text.encode()))


def vectors():
    out = []

    def add(name, token, says, **expected):
        out.append({"name": name, "token": token, "says": says, **expected})

    for alg in KEYS:
        add(f"good {alg}", sign(alg), "", role="developer", subject="alice")
        head, body, signature = sign(alg).split(".")
        flipped = bytearray(unb64(signature))
        flipped[5] ^= 1
        add(f"{alg}: another signature", f"{head}.{body}.{b64(flipped)}", "signature is wrong")
        add(f"{alg}: another payload", f"{head}.{b64(json.dumps(claims(role='guest')).encode())}.{signature}", "signature is wrong")
        add(f"{alg}: no signature", f"{head}.{body}.", "signature is wrong")
        add(f"{alg}: short signature", f"{head}.{body}.{b64(unb64(signature)[:-3])}", "signature is wrong")
    add("no role is a guest", sign(payload=claims(role=None)), "", role="guest", subject="alice")
    add("no subject", sign(payload=claims(sub=None)), "", role="developer", subject=ISSUER)
    add("audiences", sign(payload=claims(aud=["other", AUDIENCE])), "", role="developer", subject="alice")
    add("within leeway", sign(payload=claims(exp=NOW - 20, nbf=NOW + 20)), "", role="developer", subject="alice")
    add("expired", sign(payload=claims(exp=NOW - 31)), "has expired")
    add("not yet", sign(payload=claims(nbf=NOW + 31)), "not valid yet")
    add("no exp", sign(payload=claims(exp=None)), "no 'exp'")
    add("exp is text", raw({"alg": "EdDSA", "kid": "eddsa"}, claims(exp="9999999999"), ED.sign), "not a time")
    add("exp below zero", raw({"alg": "EdDSA", "kid": "eddsa"}, claims(exp=-1), ED.sign), "not a time")
    add("no iss", sign(payload=claims(iss=None)), "'iss' is none")
    add("another issuer", sign(payload=claims(iss="https://evil.example")), "'iss' is 'https://evil.example'")
    add("no aud", sign(payload=claims(aud=None)), "'aud' does not name")
    add("another audience", sign(payload=claims(aud="other")), "'aud' does not name")
    add("audiences without ours", sign(payload=claims(aud=["a", "b"])), "'aud' does not name")
    add("more than the key gives", sign(payload=claims(role="admin")), "claims to be admin")
    add("as much as the key gives", sign("ES256", payload=claims(role="admin")), "", role="admin", subject="alice")
    add("a role that is none", sign(payload=claims(role="root")), "'role' is none of")
    add("a role that is a number", sign(payload=claims(role=3)), "'role' is none of")
    none_head = b64(json.dumps({"alg": "none", "kid": "eddsa"}).encode())
    add("alg none", f"{none_head}.{b64(json.dumps(claims()).encode())}.", "'alg' is 'none'")
    add("alg None", raw({"alg": "NONE", "kid": "eddsa"}, claims(), ED.sign), "'alg' is 'NONE'")
    add("alg of another key", sign("HS256", kid="eddsa"), "'alg' is 'HS256', its key is for EdDSA")
    # The classic: the public key as the secret of an HMAC.
    import hmac
    mac = lambda text: hmac.new(pem(ED.public_key()).encode(), text, "sha256").digest()
    add("public key as secret", raw({"alg": "HS256", "kid": "eddsa"}, claims(), mac), "'alg' is 'HS256', its key is for EdDSA")
    add("alg missing", raw({"kid": "eddsa"}, claims(), ED.sign), "'alg' is none")
    add("alg is a number", raw({"alg": 1, "kid": "eddsa"}, claims(), ED.sign), "'alg' is none")
    add("no kid", raw({"alg": "EdDSA"}, claims(), ED.sign), "no key is known")
    add("unknown kid", sign(kid="nobody"), "no key is known by the token's 'kid', 'nobody'")
    add("crit", sign(header={"crit": ["exp"]}), "'crit'")
    add("empty crit", raw({"alg": "EdDSA", "kid": "eddsa", "crit": []}, claims(), ED.sign), "'crit'")
    for name in ("jku", "x5u", "jwk", "x5c"):
        add(name, sign(header={name: "https://evil.example/keys"}), f"its own key ('{name}')")
    add("typ", sign(header={"typ": "secevent+jwt"}), "'typ'")
    add("typ at+jwt", sign(header={"typ": "at+JWT"}), "", role="developer", subject="alice")
    add("two parts", sign().rsplit(".", 1)[0], "not of the form")
    add("four parts", sign() + ".x", "not of the form")
    add("five parts (encrypted)", "a.b.c.d.e", "not of the form")
    add("empty", "..", "header is not JSON")
    add("padding", sign().replace(".", "=.", 1), "not base64url")
    add("standard base64", "ey+/.ey+/.AA", "not base64url")
    add("bits left over", "ab." + sign().split(".", 1)[1], "not base64url")
    add("header is a list", raw([], claims(), ED.sign), "header is not a JSON object")
    add("payload is text", raw({"alg": "EdDSA", "kid": "eddsa"}, b"hello", ED.sign), "payload is not JSON")
    add("payload is deep", raw({"alg": "EdDSA", "kid": "eddsa"}, b"[" * 2000 + b"]" * 2000, ED.sign), "payload is not JSON")
    twice = json.dumps(claims())[:-1] + ', "role": "admin"}'
    add("a claim twice", raw({"alg": "EdDSA", "kid": "eddsa"}, twice.encode(), ED.sign), "payload is not JSON")
    add("not UTF-8", raw({"alg": "EdDSA", "kid": "eddsa"}, b'{"sub":"\xff"}', ED.sign), "payload is not JSON")
    add("too long", sign(payload=claims(sub="a" * 9000)), "at most 8192")
    return out


def main():
    rfc = [
        {"name": "RFC 7515 A.1", "alg": "HS256",
         "key": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
         "jws": "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxl"
                "LmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"},
        {"name": "RFC 7515 A.3", "alg": "ES256",
         "key": pem(ec_key("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0")),
         "jws": "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0"
                "cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"},
        {"name": "RFC 8037 A.4", "alg": "EdDSA",
         "key": pem(ed25519.Ed25519PublicKey.from_public_bytes(unb64("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"))),
         "jws": "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4"
                "ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"},
    ]
    made = {
        "now": NOW, "audience": AUDIENCE, "issuer": ISSUER, "rfc": rfc, "tokens": vectors(),
        "keys": {"eddsa": pem(ED.public_key()), "es256": pem(EC.public_key()), "hs256": b64(SECRET),
                 "p384": pem(ec.generate_private_key(ec.SECP384R1()).public_key())},
    }
    path = pathlib.Path(__file__).parent / "golden/jwt_vectors.json"
    path.write_text(json.dumps(made, indent=1) + "\n")
    print(f"{path}: {len(made['tokens'])} tokens")


if __name__ == "__main__":
    main()
