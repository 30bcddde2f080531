/**
 * Every error that this package throws on purpose; the tree, names and meanings are those of the Python SDK.
 *
 *     PrivdfsError                     catch this one to catch them all
 *     ├── ConfigError                  the call itself is wrong: servers, timeouts, a closed client
 *     ├── ImageError                   the picture cannot be used (nothing was sent)
 *     ├── BundleError                  the bundle cannot be used (nothing was sent)
 *     │   ├── BundleVersionError       its manifest has a format that this version does not read
 *     │   ├── BundleFormatError        the manifest or a graph does not have the promised shape
 *     │   ├── BundleIntegrityError     a file is missing, changed, or not listed
 *     │   ├── BundleSignatureError     no trusted key has signed it
 *     │   ├── BundleStoreError         a store of bundles is empty or damaged, or a download failed
 *     │   ├── LeakageError             it leaks more than `maxLeakageDb`, or that was not measured
 *     │   └── SelfTestError            the golden examples do not give the recorded results
 *     ├── QueryBudgetError             the key has asked for too much already (nothing was sent)
 *     ├── DeadlineExceededError        the time ran out on the device, before anything was sent
 *     ├── ServerError                  one server gave no usable answer (`.server` says which)
 *     │   ├── ServerTimeoutError       it did not answer before the deadline
 *     │   ├── ServerUnavailableError   it could not be reached, or refused the request
 *     │   │   └── ServerBusyError      its queue is full: it said so at once
 *     │   ├── ServerMismatchError      it serves another release, or it is another server of this one
 *     │   └── AnswerError              its answer is not a valid one
 *     ├── CanaryError                  an image whose answer is known came back with another one: a server lies
 *     ├── NotEnoughAnswersError        fewer servers than asked for answered (`.causes` says why, by server)
 *     ├── ContradictingAnswersError    coded shares: a server lies, and it cannot be told which
 *     └── RandomnessError              coded shares: the system's random generator failed
 *
 * Errors say what to do next, and never hold a tensor, a share, an image, a key or a token. Names are literals, since
 * minifiers rename classes.
 */

export class PrivdfsError extends Error {
  override name = "PrivdfsError";
}

/** The arguments of a call or of a client are wrong; nothing was sent. */
export class ConfigError extends PrivdfsError {
  override name = "ConfigError";
}

/** The image cannot be used; nothing was sent. */
export class ImageError extends PrivdfsError {
  override name = "ImageError";
}

/** The bundle cannot be used. Base of the errors about releases. */
export class BundleError extends PrivdfsError {
  override name = "BundleError";
}

/** The manifest has a format version that this version of privdfs does not read. */
export class BundleVersionError extends BundleError {
  override name = "BundleVersionError";
  constructor(
    message: string,
    readonly found: unknown,
    readonly supported: number,
  ) {
    super(message);
  }
}

/** The manifest, a graph or the golden file does not have the shape that the format promises. */
export class BundleFormatError extends BundleError {
  override name = "BundleFormatError";
}

/** A file is missing, or differs from what the manifest lists. Digests are SHA-256 in hex. */
export class BundleIntegrityError extends BundleError {
  override name = "BundleIntegrityError";
  constructor(
    message: string,
    readonly file: string,
    readonly expected: string | null = null,
    readonly actual: string | null = null,
  ) {
    super(message);
  }
}

/** No trusted key has signed the manifest. `key` is the id that the signature names, null where there is none. */
export class BundleSignatureError extends BundleError {
  override name = "BundleSignatureError";
  constructor(
    message: string,
    readonly key: string | null = null,
  ) {
    super(message);
  }
}

/** A bundle cannot be fetched, or a store cannot be read or written; the bundle in use is unchanged. */
export class BundleStoreError extends BundleError {
  override name = "BundleStoreError";
}

/** The release leaks more than `maxLeakageDb` allows, or its manifest does not say how much. In dB. */
export class LeakageError extends BundleError {
  override name = "LeakageError";
  constructor(
    message: string,
    readonly measured: number | null,
    readonly allowed: number,
  ) {
    super(message);
  }
}

/** On this device the golden examples do not give the recorded results. */
export class SelfTestError extends BundleError {
  override name = "SelfTestError";
}

/** `Queries` refuses to send this image. `spent` is null where the budget is not the reason. */
export class QueryBudgetError extends PrivdfsError {
  override name = "QueryBudgetError";
  constructor(
    message: string,
    readonly spent: number | null = null,
    readonly budget: number | null = null,
  ) {
    super(message);
  }
}

/** The time ran out on the device, before anything was sent. */
export class DeadlineExceededError extends PrivdfsError {
  override name = "DeadlineExceededError";
}

/** One server gave no usable answer; `server` is its index in the release. */
export class ServerError extends PrivdfsError {
  override name = "ServerError";
  constructor(
    message: string,
    readonly server: number,
  ) {
    super(message);
  }
}

/** The server did not answer before the deadline. */
export class ServerTimeoutError extends ServerError {
  override name = "ServerTimeoutError";
}

/** The server could not be reached, or refused the request. */
export class ServerUnavailableError extends ServerError {
  override name = "ServerUnavailableError";
}

/** The server runs, and refused the request at once, because its queue is full. */
export class ServerBusyError extends ServerUnavailableError {
  override name = "ServerBusyError";
}

/** The endpoint serves another release, or another server of this release; it was sent no share. */
export class ServerMismatchError extends ServerError {
  override name = "ServerMismatchError";
}

/** The server answered with a wrong tensor: its name, type, shape or values cannot be an answer. */
export class AnswerError extends ServerError {
  override name = "AnswerError";
}

/**
 * An image whose answer is known came back with another one: one or more of the servers in `answered` lie or are
 * faulty, and it is unknown which.
 */
export class CanaryError extends PrivdfsError {
  override name = "CanaryError";
  constructor(
    message: string,
    readonly answered: readonly number[],
  ) {
    super(message);
  }
}

/** Fewer servers answered than the call asked for. `causes` says what went wrong, by server. */
export class NotEnoughAnswersError extends PrivdfsError {
  override name = "NotEnoughAnswersError";
  constructor(
    message: string,
    readonly causes: ReadonlyMap<number, ServerError>,
    readonly answered: readonly number[],
    readonly needed: number,
  ) {
    super(message);
  }
}

/**
 * Answers of a coded release contradict each other, and too few servers answered to tell which of them lie.
 * `round` is counted from 1; nothing of a later round was sent.
 */
export class ContradictingAnswersError extends PrivdfsError {
  override name = "ContradictingAnswersError";
  constructor(
    message: string,
    readonly answered: readonly number[],
    readonly round: number,
  ) {
    super(message);
  }
}

/** The system's random generator failed while shares were made; they were not sent. */
export class RandomnessError extends PrivdfsError {
  override name = "RandomnessError";
}
