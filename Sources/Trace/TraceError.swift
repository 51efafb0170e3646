import Foundation

/// What can go wrong with a trace, worded for the user.
public enum TraceError: Error, Equatable, Sendable {
    /// There is no such file.
    case notFound(path: String)
    /// The file is something else.
    case notATrace(path: String, reason: String)
    /// The file is a trace of a version this program doesn't know.
    case unsupportedVersion(path: String, found: Int32)
    /// The file claims something that isn't so. `place` names the table and the row.
    case corrupt(what: String, place: String)
    /// A recording would replace a file.
    case exists(path: String)
    /// The disk, the quota or the file size limit is used up. What was committed is kept.
    case full(path: String, reason: String)
    /// Another process holds the file.
    case locked(path: String)
    /// The killed recording's journal must be rolled back, and the file may not be written.
    case needsRecovery(path: String)
    /// The system refused; `code` is errno, 0 where it is unknown.
    case io(path: String, code: Int32, text: String)
    /// The caller asked for what a trace can't hold.
    case invalid(String)
    /// The writer has been finished.
    case finished

    /// The exit status that fits, after `sysexits.h`: 65 for bad data, 66 no input, 73 can't create, 74 I/O, 75 later.
    public var exitStatus: Int32 {
        switch self {
        case .notATrace, .unsupportedVersion, .corrupt: 65
        case .notFound: 66
        case .exists: 73
        case .full, .io, .needsRecovery: 74
        case .locked: 75
        case .invalid, .finished: 70
        }
    }
}

extension TraceError: CustomStringConvertible, LocalizedError {
    public var description: String {
        switch self {
        case .notFound(let path):
            "\(path): no such file"
        case .notATrace(let path, let reason):
            "\(path): not a vmrr trace: \(reason)"
        case .unsupportedVersion(let path, let found):
            "\(path): trace format \(found), but this vmrr reads 1 to \(TraceFormat.version); use a newer vmrr"
        case .corrupt(let what, let place):
            "the trace is damaged: \(place): \(what)"
        case .exists(let path):
            "\(path): exists already; choose another name or say that it may be overwritten"
        case .full(let path, let reason):
            "\(path): \(reason); the recording ends here, and what was written before is good"
        case .locked(let path):
            "\(path): another process is writing it; try again later"
        case .needsRecovery(let path):
            "\(path): its recording was killed while writing; copy it together with \(path)-journal "
                + "to a folder you may write to, and open the copy"
        case .io(let path, let code, let text):
            code == 0 ? "\(path): \(text)" : "\(path): \(text): \(String(cString: strerror(code)))"
        case .invalid(let what):
            what
        case .finished:
            "the recording has been finished already"
        }
    }

    public var errorDescription: String? { description }
}

/// A claim in the encoded bytes that isn't so. The caller knows the row and turns it into `TraceError.corrupt`.
struct Malformed: Error {
    var what: String
    init(_ what: String) { self.what = what }

    func at(_ place: String) -> TraceError { .corrupt(what: what, place: place) }
}
