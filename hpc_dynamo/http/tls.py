"""TLS context that trusts one certificate."""

import ssl

from hpc_dynamo.regular_file import read_key

END = "-----END CERTIFICATE-----"


def pinned_tls_context(file: str) -> ssl.SSLContext:
    """Return a context that trusts only the first certificate of a PEM file, under any host name.

    Names are not checked because endpoints are reached by address, or through a tunnel from
    localhost. Raises OSError.
    """
    first, end, _ = read_key(file).partition(END)
    context = ssl.create_default_context(cadata=first + end)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
