import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

struct EventsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "events", abstract: "Lists the events of a trace.",
        discussion: "Exits have numbers from 1; exit 0 is the start. Other events bear the number of the exit before them.")

    @OptionGroup var trace: TraceArgument

    @Option(help: ArgumentHelp("Only events of this kind: \(EventKind.allCases.map { "\($0)" }.joined(separator: ", ")). "
        + "May be repeated.", valueName: "kind"))
    var kind: [String] = []

    @Option(help: ArgumentHelp("Only accesses of this port.", valueName: "port"))
    var port: String?

    @Option(help: ArgumentHelp("Only events at this address: a physical address, MSR index or vector.", valueName: "addr"))
    var address: String?

    @Option(help: ArgumentHelp("Only events from this exit on.", valueName: "exit"))
    var from: UInt64?

    @Option(help: ArgumentHelp("Only events up to this exit.", valueName: "exit"))
    var to: UInt64?

    @Option(name: .customLong("where"), help: ArgumentHelp(
        "Only events for which this holds, such as 'exit.port == 0x3f8 && exit.value == 10'; docs/predicates.md has the "
            + "language.", valueName: "predicate"))
    var condition: String?

    @OptionGroup var symbols: SymbolOptions

    @Option(help: ArgumentHelp("Stop after this many.", valueName: "n"))
    var limit: Int?

    @Flag(help: "Print a JSON object a line.")
    var json = false

    @Flag(help: "Print comma-separated values.")
    var csv = false

    func validate() throws {
        if json && csv { throw ValidationError("--json and --csv exclude each other") }
        if let limit, limit < 0 { throw ValidationError("--limit takes a number from 0") }
    }

    func run() throws {
        try reporting {
            let kinds = try Set(kind.map { name in
                guard let kind = EventKind.allCases.first(where: { "\($0)" == name }) else {
                    throw UsageError("there is no event kind '\(name)'")
                }
                return kind
            })
            let portNumber = try port.map { try Self.number($0, "--port") }
            let place = try address.map { try Self.number($0, "--address") }
            let reader = try TraceReader(path: trace.path())
            let predicate = try condition.map { try symbols.predicate($0, of: reader, option: "--where", scope: .events) }
            let transcript = Transcript(reader)
            if let predicate { try transcript.prepare(for: predicate) }
            var cursor = reader.cursor()
            if let from, from > 1 {
                // The cursor comes to stand right after an exit.
                let first = cursor.exit.rawValue
                if from - 1 > first { try cursor.seek(to: ExitNumber(from - 1)) }
            }
            var buffer = csv ? TraceEvent.csvHeader + "\n" : ""
            var printed = 0
            while let event = try cursor.next() {
                if let to, event.exit.rawValue > to { break }
                if let limit, printed >= limit { break }
                let identity = event.identity
                if let from, event.exit.rawValue < from { continue }
                if !kinds.isEmpty, !kinds.contains(identity.kind) { continue }
                if let portNumber {
                    guard identity.kind == .portRead || identity.kind == .portWrite, identity.address == portNumber
                    else { continue }
                }
                if let place, identity.address != place { continue }
                if let predicate {
                    let moment = Moment(exit: event.exit, event: event, guest: nil, transcript: transcript)
                    guard try predicate.holds(at: moment) else { continue }
                }
                buffer += (json ? event.json.text(pretty: false) : csv ? event.csv : event.line) + "\n"
                printed += 1
                if buffer.utf8.count > 1 << 16 {
                    write(buffer)
                    buffer = ""
                }
            }
            write(buffer)
            return .done
        }
    }

    private static func number(_ text: String, _ option: String) throws -> UInt64 {
        guard let value = GuestOptions.parseAddress(text) else {
            throw UsageError("\(option) takes a number such as 0x3f8, not '\(text)'")
        }
        return value
    }
}
