#!/usr/bin/env python3
"""Writes golden/tls_*.pem: certificates with their keys for the tests of TLS (Debian: python3-cryptography). They vouch for
"localhost" among these tests and for nothing else; the keys are no secrets."""

import datetime
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FOLDER = pathlib.Path(__file__).parent / "golden"


def make(name, begin, end):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    cert = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256()))
    (FOLDER / f"tls_{name}_cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (FOLDER / f"tls_{name}_key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def main():
    year = lambda number: datetime.datetime(number, 1, 1)
    make("first", year(2020), year(2120))
    make("second", year(2020), year(2120))
    make("expired", year(2020), year(2021))


if __name__ == "__main__":
    main()
