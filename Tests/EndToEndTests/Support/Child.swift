import Foundation
import Testing

/// A child process with a deadline, in a process group of its own.
enum Child {
    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    /// Runs `command` to its end. At `deadline` (seconds) its whole group is killed.
    static func run(
        _ command: [String], in folder: String, deadline: Double, input: String? = nil, signals: [Signal] = []
    ) throws -> Output {
        var output = Output(command: command, folder: folder)
        let start = now()
        // One at a time, for a child must not inherit the pipes of another.
        let (pid, out, err) = try spawning.withLock {
            let (out, err) = (try Pipe(), try Pipe())
            return (try spawn(command, in: folder, input: input, out: out, err: err), out, err)
        }
        out.closeWriting()
        err.closeWriting()
        collect(from: [out, err], of: pid, start: start, deadline: deadline, signals: signals, into: &output)
        // Both pipes are closed, so the process has ended or is about to.
        var (status, usage): (Int32, rusage) = (0, rusage())
        while wait4(pid, &status, 0, &usage) < 0 && errno == EINTR {}
        output.seconds = now() - start
        // An exec takes the peak of the process before it, this one's, into ru_maxrss (Linux, fs/exec.c, exec_mmap): only
        // what goes beyond that is certainly the child's. Below it, what was seen in time counts.
        var own = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &own)
        if usage.ru_maxrss > own.ru_maxrss { output.peakMemory = max(output.peakMemory, usage.ru_maxrss * 1024) }
        if status & 0x7F == 0 { output.status = status >> 8 & 0xFF } else { output.signal = status & 0x7F }
        return output
    }

    private static let spawning = NSLock()
    /// How often a child's peak is looked at, in seconds: what it has taken since then is missed, the peak before isn't.
    private static let sampling = 0.01

    private static func now() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
    }

    /// The most memory that a living process has had since its exec, in bytes; 0 when it has ended.
    /// Source: proc_pid_status(5), VmHWM, in KiB.
    private static func peakMemory(of pid: pid_t) -> Int {
        guard let status = try? String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8),
            let line = status.split(separator: "\n").first(where: { $0.hasPrefix("VmHWM:") }),
            let kibibytes = line.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap({ Int($0) }) else { return 0 }
        return kibibytes * 1024
    }

    /// A pipe whose ends no other child inherits.
    private final class Pipe {
        private(set) var reading: Int32 = -1
        private(set) var writing: Int32 = -1

        init() throws {
            var ends: [Int32] = [0, 0]
            guard pipe(&ends) == 0 else { throw Failure(description: "pipe: errno \(errno)") }
            (reading, writing) = (ends[0], ends[1])
            for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        }

        deinit {
            closeReading()
            closeWriting()
        }

        func closeWriting() {
            if writing >= 0 { close(writing) }
            writing = -1
        }

        func closeReading() {
            if reading >= 0 { close(reading) }
            reading = -1
        }
    }

    private static func spawn(_ command: [String], in folder: String, input: String?, out: Pipe, err: Pipe) throws -> pid_t {
        var source = "/dev/null"
        if let input {
            source = folder + "/standard-input"
            try Data(input.utf8).write(to: URL(fileURLWithPath: source))
        }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, source, O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, out.writing, 1)
        posix_spawn_file_actions_adddup2(&actions, err.writing, 2)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // The test runner may have blocked or ignored signals that the children handle.
        var none = sigset_t(), all = sigset_t()
        sigemptyset(&none)
        sigfillset(&all)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &all)
        let flags = POSIX_SPAWN_SETPGROUP | Int32(POSIX_SPAWN_SETSIGMASK) | Int32(POSIX_SPAWN_SETSIGDEF)
        posix_spawnattr_setflags(&attributes, Int16(flags))

        var words: [UnsafeMutablePointer<CChar>?] = (["env", "-C", folder] + command).map { strdup($0) } + [nil]
        defer { words.forEach { free($0) } }
        var pid: pid_t = 0
        let code = posix_spawnp(&pid, "env", &actions, &attributes, &words, environ)
        guard code == 0 else { throw Failure(description: "\(command[0]): \(String(cString: strerror(code)))") }
        return pid
    }

    /// Reads both pipes to their ends, sends the signals when they are due, kills the group at the deadline and watches
    /// the process's memory.
    private static func collect(
        from pipes: [Pipe], of pid: pid_t, start: Double, deadline: Double, signals: [Signal], into output: inout Output
    ) {
        var due = signals
        var nextSample = 0.0
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while pipes.contains(where: { $0.reading >= 0 }) {
            let elapsed = now() - start
            if elapsed >= deadline, !output.timedOut {
                output.timedOut = true
                kill(-pid, SIGKILL)
            }
            due.removeAll { signal in
                let isDue = switch signal.moment {
                case .after(let moment): elapsed >= moment
                case .output(let text): output.text.contains(text) || output.errors.contains(text)
                }
                if isDue { kill(-pid, signal.number) }
                return isDue
            }
            if elapsed >= nextSample {
                output.peakMemory = max(output.peakMemory, peakMemory(of: pid))
                nextSample = elapsed + sampling
            }
            var next = min(nextSample, output.timedOut ? elapsed + 1 : deadline)
            for case .after(let moment) in due.map(\.moment) { next = min(next, moment) }
            var waiting = pipes.map { pollfd(fd: $0.reading, events: Int16(POLLIN), revents: 0) }
            let milliseconds = Int32(max(0, (next - elapsed) * 1000).rounded(.up))
            guard poll(&waiting, nfds_t(waiting.count), milliseconds) > 0 else { continue }
            for (index, pipe) in pipes.enumerated() where waiting[index].revents != 0 {
                let count = read(pipe.reading, &buffer, buffer.count)
                if count > 0 {
                    if index == 0 { output.stdout += buffer[..<count] } else { output.stderr += buffer[..<count] }
                } else if count == 0 || errno != EINTR {
                    pipe.closeReading()
                }
            }
        }
    }
}
