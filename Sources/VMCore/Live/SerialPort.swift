import CKVM
import Foundation

/// What is connected to the guest's first serial line.
public enum SerialConnection: Equatable, Sendable {
    /// The terminal or the pipes of the process; on a terminal in raw mode, with `ConsoleKeys`.
    case stdio
    /// Output to a file; no input.
    case file(String)
    /// Input typed by a script at given times; output to standard output.
    case script(SerialScript)
    case none
}

/// The host's end of the serial line: brings bytes in on a thread of its own, and writes the guest's out.
public final class SerialPort: @unchecked Sendable {
    // `lock` guards these; everything else belongs to the vCPU thread.
    private let lock = NSLock()
    private var input: [UInt8] = []
    private var ended = false
    private var quit = false
    private var requests: [MonitorCommand] = []
    private var isMonitorOpen = false
    /// What the guest printed while the monitor was open.
    private var held: [UInt8] = []

    /// Whether there are `requests`: looked at without the lock.
    private let isAsked = SharedFlag()
    /// Where the monitor talks.
    private static let terminal: Int32 = 2
    /// So much of the guest's output waits for the monitor to be closed, in bytes.
    private static let mostHeld = 1 << 20

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
        let thread = Thread { [weak self] in Self.readInput(isTerminal: isTerminal) { self?.perform($0) ?? false } }
        thread.name = "serial input"
        thread.start()
    }

    /// Reads until the end of input or until `perform`, which gets nil at the end, says false.
    private static func readInput(isTerminal: Bool, _ perform: ([ConsoleKeys.Action]?) -> Bool) {
        var keys = ConsoleKeys()
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = read(0, &buffer, buffer.count)
            if count < 0 && ckvm_errno() == EINTR { continue }
            guard count > 0 else {
                _ = perform(nil)
                return
            }
            let bytes = Array(buffer.prefix(count))
            if !perform(isTerminal ? keys.take(bytes) : [.type(bytes)]) { return }
        }
    }

    /// Does what was typed; nil is the end of input. False where nothing more is to be read.
    private func perform(_ actions: [ConsoleKeys.Action]?) -> Bool {
        let goesOn = lock.withLock {
            for action in actions ?? [] { perform(action) }
            if actions == nil { ended = true }
            return actions != nil && !quit
        }
        wake()
        return goesOn
    }

    /// The caller has the lock.
    private func perform(_ action: ConsoleKeys.Action) {
        switch action {
        case .type(let bytes): input += bytes
        case .quit: quit = true
        case .show(let text): tell(text)
        case .echo(let bytes): Self.write(bytes, to: Self.terminal)
        case .openMonitor:
            isMonitorOpen = true
            tell("\n" + MonitorCommand.prompt)
        case .closeMonitor: closeMonitor()
        case .mistake(let text): tell(text + "\n" + MonitorCommand.prompt)
        case .monitor(.help): tell(MonitorCommand.summary + MonitorCommand.prompt)
        case .monitor(.resize): tell(typeSize() + "\n" + MonitorCommand.prompt)
        case .monitor(let command):
            requests.append(command)
            isAsked.set()
        }
    }

    private func closeMonitor() {
        isMonitorOpen = false
        Self.write(held, to: outputDescriptor)
        held = []
    }

    /// A serial line doesn't know how large a terminal is. A shell at its other end can be told.
    private func typeSize() -> String {
        var size = winsize()
        guard ckvm_ioctl_ptr(0, UInt(TIOCGWINSZ), &size) == 0, size.ws_row > 0, size.ws_col > 0 else {
            return "this terminal doesn't say how large it is"
        }
        let line = "stty rows \(size.ws_row) cols \(size.ws_col)"
        input += Array((line + "\r").utf8)
        return "typed: \(line)"
    }

    private func tell(_ text: String) { Self.write(Array(text.utf8), to: Self.terminal) }

    /// What the monitor was asked for since the last call, or the script.
    public func takeRequests() -> [MonitorCommand] {
        guard isAsked.isSet else { return [] }
        isAsked.clear()
        return lock.withLock {
            defer { requests = [] }
            return requests
        }
    }

    /// Says what came of a request, to a person who is still in the monitor.
    public func answer(_ text: String) {
        lock.withLock { if isMonitorOpen { tell(text + "\n" + MonitorCommand.prompt) } }
    }

    /// Ends a wait and kicks the guest.
    public func wake() {
        var one: UInt64 = 1
        _ = Foundation.write(wakeDescriptor, &one, 8)
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
            switch line.action {
            case .type(let text): lock.withLock { input += text }
            case .mark(let name):
                lock.withLock { requests.append(.mark(name)) }
                isAsked.set()
            }
            scriptStart = now
            script = script.dropFirst()
        }
        recentOutput = []
    }

    /// Whether the prompt was printed; takes it and all before it. What can't be part of it any more is forgotten: this is asked
    /// whenever the guest comes back, and each byte is to be looked at once.
    private func takePrompt(_ prompt: [UInt8]) -> Bool {
        guard recentOutput.count >= prompt.count else { return false }
        for start in 0...(recentOutput.count - prompt.count) where recentOutput[start...].starts(with: prompt) {
            recentOutput.removeFirst(start + prompt.count)
            return true
        }
        recentOutput.removeFirst(recentOutput.count - prompt.count + 1)
        return false
    }

    /// Writes what the guest sent. Output that nobody takes (a closed pipe) is dropped.
    public func send(_ bytes: [UInt8]) {
        if !script.isEmpty { recentOutput += bytes }
        let isHeld = lock.withLock {
            guard isMonitorOpen else { return false }
            held += bytes
            if held.count > Self.mostHeld {
                Self.write(held, to: outputDescriptor)
                held = []
            }
            return true
        }
        if !isHeld { Self.write(bytes, to: outputDescriptor) }
    }

    private static func write(_ bytes: [UInt8], to descriptor: Int32) {
        var rest = bytes[...]
        while !rest.isEmpty, descriptor >= 0 {
            let count = rest.withUnsafeBytes { Foundation.write(descriptor, $0.baseAddress, $0.count) }
            if count < 0 {
                if ckvm_errno() == EINTR { continue }
                if ckvm_errno() == EAGAIN {
                    var waiting = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
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
        lock.withLock { closeMonitor() }
        guard var settings = savedTerminal else { return }
        tcsetattr(0, TCSANOW, &settings)
        savedTerminal = nil
    }
}
