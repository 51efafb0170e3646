/// What the keys of a terminal mean while a guest has it: Ctrl-a begins a command, all else is for the guest.
public struct ConsoleKeys: Sendable {
    /// What is to be done about keys, in their order.
    public enum Action: Equatable, Sendable {
        /// For the guest.
        case type([UInt8])
        /// For the eyes of the person at the terminal.
        case show(String)
        /// What was typed into a line of the monitor.
        case echo([UInt8])
        case openMonitor
        case monitor(MonitorCommand)
        /// A line of the monitor that is no command, with what is wrong about it.
        case mistake(String)
        case closeMonitor
        case quit
    }

    private enum State: Sendable {
        case guest
        /// After Ctrl-a.
        case escaped
        /// With what was typed of a line.
        case monitor([UInt8])
        case escapedInMonitor([UInt8])
    }

    private static let controlA: UInt8 = 1
    private static let controlC: UInt8 = 3
    private static let controlD: UInt8 = 4
    private static let controlU: UInt8 = 21
    private static let longestLine = 1024

    public static let help = """
        Ctrl-a x  quits            Ctrl-a c  opens the monitor, and closes it
        Ctrl-a a  types Ctrl-a     Ctrl-a ?  shows this

        """

    private var state = State.guest

    public init() {}

    /// What these keys ask for.
    public mutating func take(_ keys: some Sequence<UInt8>) -> [Action] {
        var actions: [Action] = []
        for key in keys {
            for action in take(key) {
                // Neighbours are typed as one.
                switch (actions.last, action) {
                case (.type(let before)?, .type(let bytes)): actions[actions.count - 1] = .type(before + bytes)
                case (.echo(let before)?, .echo(let bytes)): actions[actions.count - 1] = .echo(before + bytes)
                default: actions.append(action)
                }
            }
        }
        return actions
    }

    private mutating func take(_ key: UInt8) -> [Action] {
        switch state {
        case .guest where key == Self.controlA:
            state = .escaped
            return []
        case .guest:
            return [.type([key])]
        case .escaped:
            state = .guest
            switch key {
            case Self.controlA, UInt8(ascii: "a"): return [.type([Self.controlA])]
            case UInt8(ascii: "x"): return [.quit]
            case UInt8(ascii: "?"): return [.show("\n" + Self.help)]
            case UInt8(ascii: "c"):
                state = .monitor([])
                return [.openMonitor]
            // Neither is lost where they mean nothing together.
            default: return [.type([Self.controlA, key])]
            }
        case .escapedInMonitor(let line):
            state = .monitor(line)
            switch key {
            case UInt8(ascii: "x"): return [.quit]
            case UInt8(ascii: "c"): return close()
            default: return []
            }
        case .monitor(let line):
            return edit(line, key)
        }
    }

    private mutating func edit(_ line: [UInt8], _ key: UInt8) -> [Action] {
        switch key {
        case Self.controlA:
            state = .escapedInMonitor(line)
            return []
        case UInt8(ascii: "\r"), UInt8(ascii: "\n"):
            state = .monitor([])
            return [.show("\n")] + execute(line)
        case 8, 127:
            guard !line.isEmpty else { return [] }
            // A character of several bytes goes as a whole.
            let count = line.reversed().prefix { $0 & 0xC0 == 0x80 }.count + 1
            state = .monitor(line.dropLast(count))
            return [.show("\u{8} \u{8}")]
        case Self.controlC, Self.controlU:
            state = .monitor([])
            return [.show("\n" + MonitorCommand.prompt)]
        case Self.controlD:
            return line.isEmpty ? [.show("\n")] + close() : []
        case 0..<32:
            return []
        default:
            guard line.count < Self.longestLine else { return [] }
            state = .monitor(line + [key])
            return [.echo([key])]
        }
    }

    private mutating func execute(_ line: [UInt8]) -> [Action] {
        let text = String(decoding: line, as: UTF8.self)
        switch MonitorCommand.parse(text) {
        case .success(.resume): return close()
        case .success(.quit): return [.quit]
        case .success(let command): return [.monitor(command)]
        case .failure(let mistake): return [.mistake(mistake.description)]
        }
    }

    private mutating func close() -> [Action] {
        state = .guest
        return [.closeMonitor]
    }
}

/// What can be asked of the monitor.
public enum MonitorCommand: Equatable, Sendable {
    case help
    /// A mark in the recording; nil has it numbered.
    case mark(String?)
    case checkpoint
    case info
    /// Types what tells the guest's shell how large the terminal is.
    case resize
    case resume
    case quit

    public struct Mistake: Error, CustomStringConvertible {
        public var description: String
    }

    public static let prompt = "(vmrr) "

    public static let summary = """
        mark [NAME]   marks this point of the recording: vmrr replay --to mark:NAME goes there
        checkpoint    takes one at the guest's next exit
        info          says how far the recording is
        resize        types 'stty rows R cols C' at the guest, with the size of this terminal
        continue      goes back to the guest, as Ctrl-a c does
        quit          ends the run, as Ctrl-a x does

        """

    /// A line; the first letters of a command's name are enough. An empty line goes back to the guest.
    static func parse(_ line: String) -> Result<Self, Mistake> {
        let words = line.split(separator: " ", maxSplits: 1)
        guard let name = words.first else { return .success(.resume) }
        let rest = words.count > 1 ? words[1].drop { $0 == " " } : ""
        let all = ["help", "mark", "checkpoint", "info", "resize", "continue", "quit"]
        let matches = name == "?" ? ["help"] : all.filter { $0.hasPrefix(name) }
        guard matches.count == 1, let match = matches.first else {
            return .failure(Mistake(description: matches.isEmpty
                ? "there is no command '\(name)'; help lists them" : "'\(name)' may be \(matches.joined(separator: " or "))"))
        }
        if !rest.isEmpty, match != "mark" { return .failure(Mistake(description: "\(match) takes nothing after it")) }
        switch match {
        case "mark": return .success(.mark(rest.isEmpty ? nil : String(rest)))
        case "checkpoint": return .success(.checkpoint)
        case "info": return .success(.info)
        case "resize": return .success(.resize)
        case "continue": return .success(.resume)
        case "quit": return .success(.quit)
        default: return .success(.help)
        }
    }
}
