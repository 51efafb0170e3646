import ArgumentParser
import Replay
import Trace
import VMCore

/// An exit as an option takes it: its number, or `mark:NAME` for the exit before the user's mark.
enum ExitArgument: ExpressibleByArgument {
    case number(UInt64)
    case mark(String)

    private static let prefix = "mark:"

    init?(argument: String) {
        if argument.hasPrefix(Self.prefix) {
            self = .mark(String(argument.dropFirst(Self.prefix.count)))
        } else if let number = UInt64(argument) {
            self = .number(number)
        } else {
            return nil
        }
    }

    func exit(in reader: TraceReader) throws -> ExitNumber {
        switch self {
        case .number(let number): return ExitNumber(number)
        case .mark(let name):
            let marks = try reader.marks()
            guard let mark = marks.first(where: { $0.name == name }) else {
                throw UsageError("the trace has no mark '\(name)'"
                    + (marks.isEmpty ? ": nothing is marked in it" : "; it has \(marks.map(\.name).joined(separator: ", "))"))
            }
            return mark.exit
        }
    }
}

/// A point as an option takes it: an exit, or so many instructions after one.
func parsePosition(_ text: String, option: String, in reader: TraceReader) throws -> Position {
    if let position = Position(text) { return position }
    guard let exit = ExitArgument(argument: text) else {
        throw UsageError("\(option) takes an exit such as 4711, 4711+3 or mark:NAME, not '\(text)'")
    }
    return Position(exit: try exit.exit(in: reader))
}
