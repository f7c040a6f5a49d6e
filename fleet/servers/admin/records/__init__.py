"""The API's records: each is one class that decodes and checks what comes in, encodes what goes out, and is published
in the API's description.
"""
