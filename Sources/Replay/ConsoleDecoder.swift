import VMCore

/// Rebuilds what the guest printed from its port writes: COM1's transmitter and the debug console.
///
/// Source: PC16550D data sheet, section 8.0 (registers), for what a write to the first port means.
public struct ConsoleDecoder {
    private static let com1: UInt64 = 0x3F8
    private static let debugConsole: UInt64 = 0xE9
    private static let lineControl: UInt64 = 3
    private static let modemControl: UInt64 = 4
    private static let divisorLatch: UInt64 = 0b1000_0000
    private static let loopback: UInt64 = 0b0001_0000

    private var lcr: UInt64 = 0
    private var mcr: UInt64 = 0

    public init() {}

    /// The bytes that this exit printed; mostly none.
    public mutating func decode(_ exit: Exit) -> [UInt8] {
        let identity = exit.identity
        guard identity.kind == .portWrite, identity.size > 0 else { return [] }
        var output: [UInt8] = []
        exit.forEachElement { output += write(identity.address, size: UInt64(identity.size), value: $0) }
        return output
    }

    private mutating func write(_ port: UInt64, size: UInt64, value: UInt64) -> [UInt8] {
        var output: [UInt8] = []
        for i in 0..<size {
            let byte = value >> (8 * i) & 0xFF
            switch port + i {
            case Self.com1 where lcr & Self.divisorLatch == 0 && mcr & Self.loopback == 0:
                output.append(UInt8(byte))
            case Self.debugConsole: output.append(UInt8(byte))
            case Self.com1 + Self.lineControl: lcr = byte
            case Self.com1 + Self.modemControl: mcr = byte
            default: break
            }
        }
        return output
    }
}
