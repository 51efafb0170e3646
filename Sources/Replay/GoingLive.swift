import Trace
import VMCore

extension Timeline {
    /// The machine as it stands here, to be run on with real devices. The timeline gives it away: it must not be moved
    /// or asked any more.
    ///
    /// - Throws: `ReplayError` where the state here isn't one that a machine can go on from.
    public func goLive() throws -> BuiltMachine {
        let exit = position.exit
        guard canBeKept, position.instructions == 0 else { throw ReplayError.withinInstruction(exit) }
        guard let platform else { throw ReplayError.noDevices(exit) }
        if let last = try reader.exit(exit), last.isLast(of: ending, at: exit) { throw ReplayError.ended(exit) }
        return BuiltMachine(
            engine: engine, platform: platform, memoryBytes: description.memoryBytes, model: description.cpuModel,
            timestamps: description.timestamps, exit: exit, sites: description.sites,
            unrecordable: description.unrecordable, notices: deviceMismatch.map { [$0.description] } ?? [])
    }
}

extension TraceReader {
    /// The event of an exit; nil where the trace doesn't hold it.
    public func exit(_ number: ExitNumber) throws(TraceError) -> TraceEvent? {
        guard number > firstExit, number <= lastExit else { return nil }
        var cursor = cursor()
        try cursor.seek(to: ExitNumber(number.rawValue - 1))
        while let event = try cursor.next() {
            if event.identity.kind.isExit { return event }
        }
        return nil
    }
}

extension TraceEvent {
    /// Whether the guest ended itself with this exit, so that nothing can come after it.
    fileprivate func isLast(of ending: TraceEnding?, at exit: ExitNumber) -> Bool {
        if identity.kind == .shutdown { return true }
        guard let ending, ending.exits == exit.rawValue else { return false }
        return ["debug-exit", "power-off", "reset"].contains(ending.ended)
    }
}
