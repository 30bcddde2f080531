"""Bytes to one endpoint and back: a socket of our own and TLS on it.

Guarantee: a `Stream` is one connection for life. It is made once; when it is lost it stays lost, and nothing below ever
reconnects. So what was found out about the other end of a stream (that it serves this server of this release) holds for
every byte that is sent on it. No proxy is ever used: the environment's `https_proxy` and its like have no say here.
"""

import socket
import ssl
from contextlib import suppress

from privdfs._dial import READ, WRITE, Steps, Trouble, Wait, dial
from privdfs._security import NOT_PINNED, Security, explain

_CHUNK = 64 * 1024
#: What a server means that knows nothing of ALPN.
_IMPLIED = {"http/1.1": (None,)}


class Stream:
    """One connection to one endpoint, in plaintext or TLS; not made before `open`.

    Args:
        host: name or address.
        port: TCP port.
        security: TLS, or None for plaintext.
        protocol: what is to be spoken on it, as ALPN calls it.
        service: what serves that, for errors.
    """

    def __init__(self, host: str, port: int, security: Security | None, *, protocol: str, service: str) -> None:
        self._host, self._port = host, port
        self._protocol, self._service = protocol, service
        self._security = security
        self._socket: socket.socket | None = None
        self._out = bytearray()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._shaken = False  # hands, in TLS
        self._lost = False
        self.stage = "had not been asked"

    @property
    def is_open(self) -> bool:
        """Whether it has been made and was not lost since, as far as is known."""
        return self._socket is not None and not self._lost

    def open(self) -> Steps[None]:
        """Connect, and shake hands.

        Raises:
            Trouble: it cannot be reached, its certificate does not fit, or `interrupt` came first.
        """
        if self._lost:
            raise _left()
        self.stage = "could not be connected to"
        self._socket = yield from dial(self._host, self._port)
        if self._security is not None:
            self.stage = "had not finished the TLS handshake"
            yield from self._shake_hands(self._security)
        self.stage = "did not answer"

    def send(self, data: bytes) -> Steps[None]:
        """Send all of it.

        Raises:
            Trouble: the connection is lost.
        """
        self._queue(data)
        while self._out:
            if not self._push():
                yield Wait(((self._made, WRITE),))

    def try_to_send(self, data: bytes) -> bool:
        """Send without waiting; whether all of it went."""
        with suppress(Trouble):
            self._queue(data)
            while self._out and self._push():
                pass
            return not self._out
        return False

    def receive(self) -> Steps[bytes]:
        """The next bytes, at least one.

        Raises:
            Trouble: the connection is lost.
        """
        if self._tls is None:  # nothing has come that the socket does not tell of, and an answer takes its time
            yield Wait(((self._made, READ),))
        while not (data := self.peek()):
            yield Wait(((self._made, READ),))
        return data

    def peek(self) -> bytes:
        """What has come, without waiting; nothing when nothing has.

        Raises:
            Trouble: the connection is lost.
        """
        try:
            raw = self._made.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            # With TLS there may be more than the socket says: what came with the end of the handshake, or a goodbye.
            return b"" if self._tls is None else self._decrypt(self._tls, b"")
        except OSError as error:
            raise self._broken(error) from None
        if not raw:
            raise self._broken(None)
        return raw if self._tls is None else self._decrypt(self._tls, raw)

    def close(self) -> None:
        """Let go of the socket; it cannot be opened again."""
        self._lost = True
        if self._socket is not None:
            self._socket.close()

    def interrupt(self) -> None:
        """End the connection under whoever waits for it in another thread; `close` is still theirs."""
        self._lost = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    @property
    def _made(self) -> socket.socket:
        if self._socket is None or self._lost:
            raise _left()
        return self._socket

    def _queue(self, data: bytes) -> None:
        if self._tls is None:
            self._out += data
            return
        if data:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                raise self._refused(error) from None
        self._out += self._outgoing.read()

    def _push(self) -> bool:
        """Hand the kernel what waits; False when it takes no more just now."""
        try:
            sent = self._made.send(self._out)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.peek()  # what the other side said before it closed, such as TLS's alert, says more
            raise self._broken(error) from None
        del self._out[:sent]
        return True

    def _decrypt(self, tls: ssl.SSLObject, raw: bytes) -> bytes:
        self._incoming.write(raw)
        plain = bytearray()
        try:
            while chunk := tls.read(_CHUNK):
                plain += chunk
            if not plain:  # the other side said goodbye, whether it closes the socket or not
                raise self._broken(None)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            if not plain:
                raise self._broken(None) from None
        except ssl.SSLError as error:
            raise self._refused(error) from None
        return bytes(plain)

    def _shake_hands(self, security: Security) -> Steps[None]:
        self._tls = security.context.wrap_bio(self._incoming, self._outgoing, server_hostname=self._host)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                yield from self.send(b"")
                raw = yield from self._raw()
                self._incoming.write(raw)
            except ssl.SSLError as error:
                self.try_to_send(b"")  # the alert that says why
                raise self._refused(error) from None
            else:
                break
        yield from self.send(b"")
        self._shaken = True
        peer = self._tls.getpeercert(binary_form=True)
        if security.pinned and peer not in security.pinned:
            raise Trouble(*NOT_PINNED, again=False)
        if self._tls.selected_alpn_protocol() not in {self._protocol, *_IMPLIED.get(self._protocol, ())}:
            raise Trouble(
                f"does not speak {self._protocol} over TLS",
                f"give the port of the server's {self._service} service",
                again=False,
            )

    def _raw(self) -> Steps[bytes]:
        while True:
            yield Wait(((self._made, READ),))
            try:
                raw = self._made.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise self._broken(error) from None
            if not raw:
                raise self._broken(None)
            return raw

    def _refused(self, error: ssl.SSLError) -> Trouble:
        assert self._security is not None  # noqa: S101 - only TLS gets here
        what, advice = explain(error, self._security)
        return Trouble(what, advice, again=False)

    def _broken(self, error: OSError | None) -> Trouble:
        """The connection ended: by an error, or (None) by the other side."""
        if self._lost:  # `interrupt`, from another thread
            return _left()
        self._lost = True
        if self._security is None:
            also = f"that this is its {self._service} port, and that both sides use TLS or neither"
        elif not self._shaken:
            also = f"that this is its {self._service} port, and that it uses TLS"
        elif self._security.named:
            also = "and that it accepts this device's certificate"
        else:
            also = "and whether it wants a certificate of this device, TLS(cert=…, key=…)"
        how = "closed the connection" if error is None else f"lost the connection ({type(error).__name__})"
        return Trouble(f"{how} before it answered", f"check that the server runs there, {also}")


def _left() -> Trouble:
    return Trouble("was left while the call ran", "close a client only when its calls have ended", again=False)
