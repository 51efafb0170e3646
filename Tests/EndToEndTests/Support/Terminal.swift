import Foundation
import Testing

/// vmrr at a terminal: a person types, and sees what comes.
final class Terminal {
    private let descriptor: Int32
    private let pid: pid_t
    private var bytes: [UInt8] = []
    /// How much of `bytes` the expectations have taken.
    private var taken = 0
    private var status: Int32?

    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    init(_ arguments: [String], in folder: Folder = .current) throws {
        var (ours, theirs): (Int32, Int32) = (-1, -1)
        guard openpty(&ours, &theirs, nil, nil, nil) == 0 else { throw Failure(description: "no terminal: errno \(errno)") }
        for end in [ours, theirs] { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        descriptor = ours
        defer { close(theirs) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        for standard in 0...2 as ClosedRange<Int32> { posix_spawn_file_actions_adddup2(&actions, theirs, standard) }
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t(), all = sigset_t()
        sigemptyset(&none)
        sigfillset(&all)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &all)
        posix_spawnattr_setflags(
            &attributes, Int16(POSIX_SPAWN_SETPGROUP | Int32(POSIX_SPAWN_SETSIGMASK) | Int32(POSIX_SPAWN_SETSIGDEF)))
        let words: [UnsafeMutablePointer<CChar>?] = (["env", "-C", folder.path, Vmrr.binary] + arguments).map { strdup($0) } + [nil]
        defer { words.forEach { free($0) } }
        var child: pid_t = 0
        let code = posix_spawnp(&child, "env", &actions, &attributes, words, environ)
        guard code == 0 else { throw Failure(description: "can't start vmrr: \(String(cString: strerror(code)))") }
        pid = child
    }

    deinit {
        if status == nil {
            kill(pid, SIGKILL)
            var rest: Int32 = 0
            waitpid(pid, &rest, 0)
        }
        close(descriptor)
    }

    func type(_ text: String) {
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            guard count > 0 else { return }
            rest = rest.dropFirst(count)
        }
    }

    /// Reads until `text` comes, behind what was expected before.
    func expect(_ text: String, within seconds: Double = 30, sourceLocation: SourceLocation = #_sourceLocation) throws {
        let wanted = Array(text.utf8)
        let end = Date().addingTimeInterval(seconds)
        while true {
            if let range = bytes[taken...].firstRange(of: wanted) {
                taken = range.upperBound
                return
            }
            guard read(until: end) else {
                let seen = String(decoding: bytes, as: UTF8.self)
                Issue.record("'\(text)' didn't come; the terminal shows: \(seen)", sourceLocation: sourceLocation)
                throw Failure(description: "the session came to nothing")
            }
        }
    }

    /// Reads to the end; returns the exit status.
    func end(within seconds: Double = 30) throws -> Int32 {
        let end = Date().addingTimeInterval(seconds)
        while read(until: end) {}
        var code: Int32 = 0
        while waitpid(pid, &code, WNOHANG) == 0 {
            guard Date() < end else { throw Failure(description: "it didn't end: \(shown)") }
            usleep(10_000)
        }
        status = code & 0x7F == 0 ? code >> 8 & 0xFF : -1
        return status ?? -1
    }

    /// All that the terminal has shown.
    var shown: String { String(decoding: bytes, as: UTF8.self) }

    /// False at the end of output, and when it is too late.
    private func read(until end: Date) -> Bool {
        var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        let rest = end.timeIntervalSinceNow
        guard rest > 0, poll(&waiting, 1, Int32(rest * 1000) + 1) > 0 else { return false }
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = Foundation.read(descriptor, &buffer, buffer.count)
        guard count > 0 else { return false }
        bytes += buffer[..<count]
        return true
    }
}
