/// The board's own byte ports: system control ports A and B, reset control, POST code, delay.
///
/// Port 0x61 and 0x92: IBM PS/2 Hardware Interface Technical Reference, "System Control Port B" and "A". 0xcf9: Intel
/// ICH9 data sheet (316972), section 13.7.5 "RST_CNT". Offsets are absolute port numbers.
///
/// The A20 gate bit of port 0x92 is kept and read back, but address line 20 is never masked: no guest that this
/// machine starts needs the wrap-around of an 8086.
public struct SystemPorts: BytePortDevice {
    public enum Port {
        public static let controlB: UInt16 = 0x61
        public static let post: UInt16 = 0x80
        public static let controlA: UInt16 = 0x92
        public static let delay: UInt16 = 0xed
        public static let resetControl: UInt16 = 0xcf9
    }

    private enum ControlB {
        static let timer2Gate: UInt8 = 0b0000_0001
        static let writable: UInt8 = 0b0000_1111
        static let refresh: UInt8 = 0b0001_0000
    }

    /// The bit of port 0x61 that shows the output of the timer's counter 2, which the board wires in.
    public static let timer2Output: UInt8 = 0b0010_0000

    private enum ControlA {
        static let fastReset: UInt8 = 0b0000_0001
        static let a20: UInt8 = 0b0000_0010
    }

    private enum ResetControl {
        static let cpu: UInt8 = 0b0000_0100
        static let writable: UInt8 = 0b0000_1110
    }

    /// How long the refresh request bit keeps its level.
    private static let refreshInterval: UInt64 = 15_000

    private var controlB: UInt8 = 0
    private var controlA = ControlA.a20
    private var resetControl: UInt8 = 0
    /// The last byte written to the POST port; a progress code of firmware.
    public private(set) var postCode: UInt8 = 0
    private var request: PowerRequest?

    public init() {}

    /// The level that bit 0 of port 0x61 drives onto the gate of the timer's counter 2.
    public var timer2Gate: Bool { controlB & ControlB.timer2Gate != 0 }

    public mutating func takeRequest() -> PowerRequest? {
        defer { request = nil }
        return request
    }

    public mutating func readByte(_ port: UInt16, at now: Nanoseconds) -> UInt8 {
        switch port {
        case Port.controlB: controlB | (now.rawValue / Self.refreshInterval & 1 != 0 ? ControlB.refresh : 0)
        case Port.post: postCode
        case Port.controlA: controlA
        case Port.resetControl: resetControl
        default: 0xff
        }
    }

    public mutating func writeByte(_ port: UInt16, _ value: UInt8, at now: Nanoseconds) {
        switch port {
        case Port.controlB: controlB = value & ControlB.writable
        case Port.post: postCode = value
        case Port.controlA:
            if value & ~controlA & ControlA.fastReset != 0 { request = .reset }
            controlA = value
        case Port.resetControl:
            if value & ~resetControl & ResetControl.cpu != 0 { request = .reset }
            resetControl = value & ResetControl.writable
        default: break
        }
    }
}
