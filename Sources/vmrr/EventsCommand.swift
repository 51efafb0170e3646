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
            var cursor = try TraceReader(path: trace.path()).cursor()
            if let from, from > 1 {
                // The cursor comes to stand right after an exit.
                let first = cursor.exit.rawValue
                if from - 1 > first { try cursor.seek(to: ExitNumber(from - 1)) }
            }
            var buffer = csv ? "exit,kind,address,size,count,fault,value,data\n" : ""
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
                buffer += json ? Self.json(event) : csv ? Self.csv(event) : Self.line(event)
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

    private static func bytes(_ payload: some Sequence<UInt8>) -> String {
        payload.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
    }

    private static func line(_ event: TraceEvent) -> String {
        let number = String(event.exit.rawValue)
        let exit = event.identity.kind.isExit ? number : "+"
        var text = String(repeating: " ", count: max(0, 10 - exit.count)) + exit + "  " + event.identity.text
        switch event.identity.kind {
        case .halt, .shutdown, .hypercall, .interruptAtExit, .interruptAtWindow, .nmiAtExit: break
        case .interruptAtAnchor, .nmiAtAnchor, .endAtAnchor:
            if let anchor = event.anchor { text += " at RIP \(hex(anchor.rip))" }
        case .time, .deviceTime: text += " \(Nanoseconds(event.value).seconds) s"
        case .portRead, .mmioRead, .msrRead, .timestamp, .random:
            text += " -> " + (event.payload.map { bytes($0) } ?? hex(event.value))
        default: text += " = " + (event.payload.map { bytes($0) } ?? hex(event.value))
        }
        return text + "\n"
    }

    private static func json(_ event: TraceEvent) -> String {
        let identity = event.identity
        var members: [(String, JSON)] = [
            ("exit", JSON(event.exit.rawValue)), ("kind", .string("\(identity.kind)")),
            ("is_exit", .bool(identity.kind.isExit)), ("address", JSON(identity.address)),
            ("size", JSON(UInt(identity.size))), ("count", JSON(UInt(identity.count))),
            ("fault", .bool(identity.flags & EventIdentity.faulted != 0)),
        ]
        if let payload = event.payload {
            members.append(("data", .string(bytes(payload))))
        } else if let anchor = event.anchor {
            members.append(("anchor", [
                "rip": JSON(anchor.rip), "registers": .string(hex(anchor.registers)), "memory": .string(hex(anchor.memory)),
                "elapsed_us": .number(anchor.elapsed.seconds * 1e6),
            ]))
        } else {
            members.append(("value", JSON(event.value)))
        }
        return JSON.object(members).text(pretty: false) + "\n"
    }

    private static func csv(_ event: TraceEvent) -> String {
        let identity = event.identity
        let value = event.payload == nil && event.anchor == nil ? String(event.value) : ""
        let data = event.payload.map { bytes($0) } ?? event.anchor.map { hex($0.rip) } ?? ""
        let fault = identity.flags & EventIdentity.faulted != 0 ? 1 : 0
        return "\(event.exit.rawValue),\(identity.kind),\(hex(identity.address)),\(identity.size),\(identity.count),"
            + "\(fault),\(value),\(data)\n"
    }
}
