"""An authority for one run, which signs the certificates of local servers and gateways."""

from pathlib import Path

from privdfs_export.errors import ServeError

_HOSTS = ("localhost", "127.0.0.1", "::1")


class Authority:
    """Its certificate is kept with the logs; its key is never written.

    Raises:
        ServeError: the certificate cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        import trustme

        self._authority = trustme.CA()
        self.ca = folder / "ca.pem"
        try:
            self._authority.cert_pem.write_to_path(self.ca)
        except OSError as error:
            msg = f"cannot write {self.ca} ({error}): name another folder with --log-dir"
            raise ServeError(msg) from error

    def issue(self, certificate: Path, key: Path) -> None:
        """Write a certificate for this machine's names for itself."""
        issued = self._authority.issue_cert(*_HOSTS)
        certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
