/// The debug console at port 0xe9 and the debug exit at ports 0xf4 to 0xf7.
///
/// The console is Bochs's "port E9 hack": bytes written are output, and a read gives 0xe9 as the sign that it is there.
/// The exit is QEMU's isa-debug-exit with four ports, except that the value ends the run as it is.
public struct DebugPorts: Device {
    /// What a read of the console port gives.
    public static let consolePresent: UInt8 = 0xe9

    private var output: [UInt8] = []
    private var request: PowerRequest?

    public init() {}

    public var hasOutput: Bool { !output.isEmpty }

    /// What the guest has written to the console since the last call.
    public mutating func takeOutput() -> [UInt8] {
        guard !output.isEmpty else { return [] }
        defer { output = [] }
        return output
    }

    public mutating func takeRequest() -> PowerRequest? {
        defer { request = nil }
        return request
    }

    public mutating func writeConsole(_ byte: UInt8) { output.append(byte) }

    /// Ends the run with the low `size` bytes (1, 2 or 4) of `value`.
    public mutating func writeExit(_ value: UInt32, size: Int) {
        switch size {
        case 1: request = .debugExit(value & 0xff)
        case 2: request = .debugExit(value & 0xffff)
        default: request = .debugExit(value)
        }
    }
}
