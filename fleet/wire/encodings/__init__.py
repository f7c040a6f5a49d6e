"""Certificates, keys, requests and revocation lists in the files that people exchange: recognize, read, write."""
