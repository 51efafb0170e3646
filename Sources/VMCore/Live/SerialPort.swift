import CKVM
import Foundation

/// What is connected to the guest's first serial line.
public enum SerialConnection: Equatable, Sendable {
    /// The terminal or the pipes of the process; on a terminal in raw mode with an escape key.
    case stdio
    /// Output to a file; no input.
    case file(String)
    /// Input typed by a script at given times; output to standard output.
    case script(SerialScript)
    case none
}

/// Timed input: what a person would have typed.
public struct SerialScript: Equatable, Sendable {
    public enum Trigger: Equatable, Sendable {
        /// Machine time since power-on.
        case at(Nanoseconds)
        /// Machine time since the line before.
        case after(Nanoseconds)
        /// Once the guest has printed this text, since the line before.
        case expect([UInt8])
    }

    public struct Line: Equatable, Sendable {
        public var trigger: Trigger
        public var text: [UInt8]

        public init(trigger: Trigger, text: [UInt8]) {
            self.trigger = trigger
            self.text = text
        }
    }

    public var lines: [Line]

    public struct SyntaxError: Error, CustomStringConvertible {
        public var line: Int
        public var problem: String
        public var description: String { "line \(line): \(problem)" }
    }

    /// Parses lines of the form `100ms "text\r"`, `+50ms "text"` and `expect "prompt" "text"`; `#` starts a comment.
    ///
    /// In texts `\r \n \t \\ \" \xHH` stand for bytes.
    public init(parsing source: String) throws(SyntaxError) {
        lines = []
        for (number, raw) in source.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
            let line = raw.drop { $0 == " " || $0 == "\t" }
            if line.isEmpty || line.first == "#" || line == "\r" { continue }
            func fail(_ problem: String) -> SyntaxError { SyntaxError(line: number + 1, problem: problem) }
            var rest = line
            let word = rest.prefix { $0 != " " && $0 != "\t" && $0 != "\"" }
            rest = rest.dropFirst(word.count)
            let trigger: Trigger
            if word == "expect" {
                guard let prompt = Self.takeText(&rest), !prompt.isEmpty else { throw fail("expect needs a \"text\"") }
                trigger = .expect(prompt)
            } else if word.first == "+", let span = Nanoseconds(parsing: word.dropFirst()) {
                trigger = .after(span)
            } else if let moment = Nanoseconds(parsing: word) {
                trigger = .at(moment)
            } else {
                throw fail("expected a time such as 100ms, +50ms or 2s, or the word expect, not '\(word)'")
            }
            guard let text = Self.takeText(&rest) else { throw fail("expected a \"text\" to type") }
            guard rest.allSatisfy({ $0 == " " || $0 == "\t" || $0 == "\r" }) else { throw fail("more than expected: '\(rest)'") }
            lines.append(Line(trigger: trigger, text: text))
        }
    }

    private static func takeText(_ rest: inout Substring) -> [UInt8]? {
        rest = rest.drop { $0 == " " || $0 == "\t" }
        guard rest.first == "\"" else { return nil }
        var bytes: [UInt8] = []
        var source = Array(rest.dropFirst().utf8)[...]
        while let byte = source.popFirst() {
            if byte == UInt8(ascii: "\"") {
                rest = Substring(decoding: source, as: UTF8.self)
                return bytes
            }
            guard byte == UInt8(ascii: "\\") else {
                bytes.append(byte)
                continue
            }
            switch source.popFirst() {
            case UInt8(ascii: "r"): bytes.append(13)
            case UInt8(ascii: "n"): bytes.append(10)
            case UInt8(ascii: "t"): bytes.append(9)
            case UInt8(ascii: "\\"): bytes.append(UInt8(ascii: "\\"))
            case UInt8(ascii: "\""): bytes.append(UInt8(ascii: "\""))
            case UInt8(ascii: "x"):
                guard let value = UInt8(String(decoding: source.prefix(2), as: UTF8.self), radix: 16), source.count >= 2
                else { return nil }
                bytes.append(value)
                source = source.dropFirst(2)
            default: return nil
            }
        }
        return nil
    }
}

extension Nanoseconds {
    /// Reads a span such as `30s`, `250ms`, `20us`, `5min` or `2h`; a number alone is seconds.
    public init?(parsing text: some StringProtocol) {
        let units: [(String, Double)] = [
            ("ms", 1e6), ("us", 1e3), ("µs", 1e3), ("ns", 1), ("min", 60e9), ("h", 3600e9), ("s", 1e9), ("", 1e9),
        ]
        for (suffix, factor) in units where text.hasSuffix(suffix) {
            let digits = text.dropLast(suffix.count)
            guard digits.first?.isNumber == true, digits.allSatisfy({ $0.isASCII && ($0.isNumber || $0 == ".") }),
                let number = Double(String(digits)), number * factor < 9e18
            else { continue }
            self.init(UInt64(number * factor))
            return
        }
        return nil
    }
}

/// The host's end of the serial line: brings bytes in on a thread of its own, and writes the guest's out.
public final class SerialPort: @unchecked Sendable {
    // `lock` guards `input`, `ended` and `quit`; everything else belongs to the vCPU thread.
    private let lock = NSLock()
    private var input: [UInt8] = []
    private var ended = false
    private var quit = false

    private let outputDescriptor: Int32
    private let ownsOutput: Bool
    private let wakeDescriptor: Int32
    private var savedTerminal: termios?
    private var script: ArraySlice<SerialScript.Line> = []
    private var scriptStart = Nanoseconds(0)
    private var recentOutput: [UInt8] = []
    private let readsStandardInput: Bool
    private var kicker: Kicker?

    public init(_ connection: SerialConnection, console: Int32 = 1) throws(SystemCallError) {
        wakeDescriptor = eventfd(0, Int32(EFD_NONBLOCK | EFD_CLOEXEC))
        switch connection {
        case .stdio:
            (outputDescriptor, ownsOutput, readsStandardInput) = (console, false, true)
        case .file(let path):
            let fd = ckvm_create(path)
            guard fd >= 0 else { throw SystemCallError("open \(path)") }
            (outputDescriptor, ownsOutput, readsStandardInput) = (fd, true, false)
        case .script(let script):
            (outputDescriptor, ownsOutput, readsStandardInput) = (console, false, false)
            self.script = script.lines[...]
        case .none:
            (outputDescriptor, ownsOutput, readsStandardInput) = (-1, false, false)
        }
        ended = !readsStandardInput
    }

    deinit {
        restoreTerminal()
        if ownsOutput { close(outputDescriptor) }
        close(wakeDescriptor)
    }

    /// Starts to bring input in; `kicker` gets the guest's attention.
    public func start(kicker: Kicker) {
        self.kicker = kicker
        guard readsStandardInput else { return }
        makeTerminalRaw()
        let isTerminal = isatty(0) != 0
        let thread = Thread { [weak self] in Self.readInput(isTerminal: isTerminal) { self?.deliver($0) ?? false } }
        thread.name = "serial input"
        thread.start()
    }

    /// Reads until the end of input or until `deliver`, which gets nil at the end, says false.
    private static func readInput(isTerminal: Bool, _ deliver: ([UInt8]?) -> Bool) {
        var escaped = false
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = read(0, &buffer, buffer.count)
            if count < 0 && ckvm_errno() == EINTR { continue }
            guard count > 0 else {
                _ = deliver(nil)
                return
            }
            var bytes: [UInt8] = []
            for byte in buffer.prefix(count) {
                switch (isTerminal, escaped, byte) {
                case (true, false, 1): escaped = true
                case (true, true, UInt8(ascii: "x")):
                    _ = deliver([])
                    return
                default:
                    // Ctrl-a twice is one Ctrl-a; after another key both are passed on.
                    if escaped && byte != 1 { bytes.append(1) }
                    escaped = false
                    bytes.append(byte)
                }
            }
            if !bytes.isEmpty && !deliver(bytes) { return }
        }
    }

    /// Takes input over; nil is the end of input, nothing is the wish to quit.
    private func deliver(_ bytes: [UInt8]?) -> Bool {
        lock.withLock {
            if let bytes {
                if bytes.isEmpty { quit = true } else { input += bytes }
            } else {
                ended = true
            }
        }
        wake()
        return true
    }

    /// Ends a wait and kicks the guest.
    public func wake() {
        var one: UInt64 = 1
        _ = write(wakeDescriptor, &one, 8)
        kicker?.kick()
    }

    /// Whether the user pressed the keys that end the run.
    public var wantsToQuit: Bool { lock.withLock { quit } }

    /// Whether any input can still come.
    public var mayReceive: Bool { !script.isEmpty || lock.withLock { !ended || !input.isEmpty } }

    /// When the script types next; nil when it waits for output or is done.
    public var nextInput: Nanoseconds? {
        switch script.first?.trigger {
        case .at(let moment): moment
        case .after(let span): scriptStart + span
        case .expect, nil: nil
        }
    }

    /// Gives bytes to `receive` until it has no more room.
    public func deliverInput(at now: Nanoseconds, _ receive: (UInt8) -> Bool) {
        runScript(at: now)
        lock.withLock {
            let taken = input.prefix { receive($0) }.count
            if taken > 0 { input.removeFirst(taken) }
        }
    }

    private func runScript(at now: Nanoseconds) {
        while let line = script.first {
            switch line.trigger {
            case .at(let moment): if now < moment { return }
            case .after(let span): if now < scriptStart + span { return }
            case .expect(let prompt): guard takePrompt(prompt) else { return }
            }
            lock.withLock { input += line.text }
            scriptStart = now
            script = script.dropFirst()
        }
        recentOutput = []
    }

    private func takePrompt(_ prompt: [UInt8]) -> Bool {
        guard recentOutput.count >= prompt.count else { return false }
        for start in 0...(recentOutput.count - prompt.count) where recentOutput[start...].starts(with: prompt) {
            recentOutput.removeFirst(start + prompt.count)
            return true
        }
        recentOutput.removeFirst(max(0, recentOutput.count - 64 * 1024))
        return false
    }

    /// Writes what the guest sent. Output that nobody takes (a closed pipe) is dropped.
    public func send(_ bytes: [UInt8]) {
        if !script.isEmpty { recentOutput += bytes }
        var rest = bytes[...]
        while !rest.isEmpty, outputDescriptor >= 0 {
            let count = rest.withUnsafeBytes { write(outputDescriptor, $0.baseAddress, $0.count) }
            if count < 0 {
                if ckvm_errno() == EINTR { continue }
                if ckvm_errno() == EAGAIN {
                    var waiting = pollfd(fd: outputDescriptor, events: Int16(POLLOUT), revents: 0)
                    _ = poll(&waiting, 1, 1000)
                    continue
                }
                return
            }
            rest = rest.dropFirst(count)
        }
    }

    /// Sleeps until a moment of the host's clock, or until `wake`; nil sleeps until `wake` alone.
    public func wait(until moment: Nanoseconds?) {
        var waiting = pollfd(fd: wakeDescriptor, events: Int16(POLLIN), revents: 0)
        let ready: Int32
        if let moment {
            let span = (moment - hostTime()).rawValue
            ready = ckvm_ppoll(&waiting, 1, span)
        } else {
            ready = poll(&waiting, 1, -1)
        }
        if ready > 0 {
            var count: UInt64 = 0
            _ = read(wakeDescriptor, &count, 8)
        }
    }

    // MARK: Terminal

    private func makeTerminalRaw() {
        var settings = termios()
        guard isatty(0) != 0, tcgetattr(0, &settings) == 0 else { return }
        savedTerminal = settings
        cfmakeraw(&settings)
        // Output keeps its line ends for messages of the monitor's own.
        settings.c_oflag |= tcflag_t(OPOST)
        tcsetattr(0, TCSANOW, &settings)
    }

    public func restoreTerminal() {
        guard var settings = savedTerminal else { return }
        tcsetattr(0, TCSANOW, &settings)
        savedTerminal = nil
    }
}
