import Trace
import VMCore

extension TraceEvent {
    /// The event in words, with its value: an arrow leads to what the guest got, an equals sign to what it gave.
    public var text: String {
        switch identity.kind {
        case .halt, .shutdown, .hypercall, .interruptAtExit, .interruptAtWindow, .nmiAtExit: return identity.text
        case .interruptAtAnchor, .nmiAtAnchor, .endAtAnchor:
            return identity.text + (anchor.map { " at RIP \(hex($0.rip))" } ?? "")
        case .mark: return identity.text + " " + (markName ?? "")
        case .time, .deviceTime: return identity.text + " \(Nanoseconds(value).seconds) s"
        case .portRead, .mmioRead, .msrRead, .timestamp, .random: return identity.text + " -> " + content
        default: return identity.text + " = " + content
        }
    }

    private var content: String { payload.map { RegisterText.bytes($0) } ?? hex(value) }

    /// A line of a list: the number of an exit, or a plus for what entered after it, and the event.
    public var line: String {
        let number = identity.kind.isExit ? String(exit.rawValue) : "+"
        return String(repeating: " ", count: max(0, 10 - number.count)) + number + "  " + text
    }

    public var json: JSON {
        var members: [(String, JSON)] = [
            ("exit", JSON(exit.rawValue)), ("kind", .string("\(identity.kind)")),
            ("is_exit", .bool(identity.kind.isExit)), ("address", JSON(identity.address)),
            ("size", JSON(UInt(identity.size))), ("count", JSON(UInt(identity.count))),
            ("fault", .bool(identity.flags & EventIdentity.faulted != 0)),
        ]
        if let markName { members.append(("name", .string(markName))) }
        if let payload {
            members.append(("data", .string(RegisterText.bytes(payload))))
        } else if let anchor {
            members.append(
                (
                    "anchor",
                    [
                        "rip": JSON(anchor.rip), "general": .string(hex(anchor.general)),
                        "registers": anchor.isBrief ? .null : .string(hex(anchor.registers)),
                        "memory": .string(hex(anchor.memory)),
                        "elapsed_us": .number(anchor.elapsed.seconds * 1e6),
                    ]
                ))
        } else {
            members.append(("value", JSON(value)))
        }
        return .object(members)
    }

    /// The columns of `csvHeader`.
    public var csv: String {
        let value = payload == nil && anchor == nil ? String(value) : ""
        let data = payload.map { RegisterText.bytes($0) } ?? anchor.map { hex($0.rip) } ?? ""
        let fault = identity.flags & EventIdentity.faulted != 0 ? 1 : 0
        return "\(exit.rawValue),\(identity.kind),\(hex(identity.address)),\(identity.size),\(identity.count),"
            + "\(fault),\(value),\(data)"
    }

    public static let csvHeader = "exit,kind,address,size,count,fault,value,data"
}

extension TraceEvent {
    /// Whether it is a note of host time, of what devices were given or of the user's, which the guest doesn't see.
    var isForDevices: Bool { [.time, .deviceTime, .serialInput, .mark].contains(identity.kind) }

    /// Whether an interrupt or NMI entered.
    var isInterrupt: Bool { identity.isInterrupt }

    /// The vector of an interrupt; nil for an NMI, whose vector is 2, and for what is no interrupt.
    var vector: UInt8? { field(.vector).map { UInt8(truncatingIfNeeded: $0) } }
}

extension EventIdentity {
    /// Whether an interrupt or NMI enters with such an event.
    var isInterrupt: Bool {
        switch kind {
        case .interruptAtExit, .interruptAtWindow, .interruptAtAnchor, .nmiAtExit, .nmiAtAnchor: true
        default: false
        }
    }
}
