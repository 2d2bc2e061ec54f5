"""TLS between jobs of one run, whose endpoints show the run's own certificate."""

import ssl


def trusting(cert: str) -> ssl.SSLContext | None:
    """For clients of an endpoint with the certificate in this PEM file, under any name: jobs of
    one run are on other nodes. None without one."""
    if not cert:
        return None
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
