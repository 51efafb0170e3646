import Trace
import VMCore

extension Timeline: GuestView {
    public func registers() throws -> CoreRegisters { try engine.registers() }
}

extension TraceReader {
    /// Whether the devices can be run again beside a replay. Recordings of older versions hold neither a state of them
    /// that is still known nor what they were given.
    public func canReplayDevices() throws -> Bool {
        guard let start = checkpoints.first else { return false }
        let stored = try state(of: start.id)
        return (try? DeviceReplay.platform(stored, of: start.id)) != nil
    }
}
