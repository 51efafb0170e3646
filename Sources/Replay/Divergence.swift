import Trace
import VMCore

/// The first point at which a replay differs from its recording.
public struct Divergence: Error, Codable, Equatable, Sendable, CustomStringConvertible {
    public var exit: ExitNumber
    public var expected: String
    public var actual: String

    public init(exit: ExitNumber, expected: String, actual: String) {
        self.exit = exit
        self.expected = expected
        self.actual = actual
    }

    public var description: String { "diverged at exit \(exit.rawValue): expected \(expected), got \(actual)" }
}

extension EventIdentity {
    /// The event in words, without a value.
    public var text: String {
        switch kind {
        case .portRead, .portWrite:
            let direction = kind == .portRead ? "port read" : "port write"
            return "\(direction) \(hex(address)) size \(size)" + (count > 1 ? " count \(count)" : "")
        case .mmioRead: return "MMIO read \(hex(address)) size \(size)"
        case .mmioWrite: return "MMIO write \(hex(address)) size \(size)"
        case .msrRead: return "RDMSR \(hex(address))" + fault
        case .msrWrite: return "WRMSR \(hex(address))" + fault
        case .timestamp: return ["RDTSC", "RDTSCP", "RDMSR IA32_TSC"][Int(min(address, 2))]
        case .random: return "RDRAND"
        case .halt: return "HLT"
        case .hypercall: return "hypercall"
        case .shutdown: return "triple fault"
        case .interruptAtExit: return "interrupt \(hex(address)) at the exit"
        case .interruptAtWindow: return "interrupt \(hex(address)) at the first window"
        case .interruptAtAnchor: return "interrupt \(hex(address)) between exits"
        case .nmiAtExit: return "NMI at the exit"
        case .nmiAtAnchor: return "NMI between exits"
        case .memoryWrite: return "memory write \(hex(address)), \(count) bytes"
        case .registerWrite:
            return address == Self.timestampRegister ? "timestamp counter set" : "CR\(address) set"
        case .registerCheck: return "register digest"
        case .time: return "time"
        case .deviceTime: return "device time"
        case .serialInput: return "serial input, \(count) bytes"
        case .mark: return "mark"
        case .endAtAnchor: return "end of the recording"
        }
    }

    private var fault: String { flags & Self.faulted != 0 ? " with #GP" : "" }
}
