/// A soft engine that runs stretches of a guest in another engine's place, in the same memory.
///
/// What each writes is told to the other: code that the engine changed is decoded anew, and what the assistant writes
/// counts as the monitor's writes.
final class Assistant {
    let engine: SoftEngine
    private let writes: WriteLog.Follower

    init(_ engine: SoftEngine, log: WriteLog) throws {
        self.engine = engine
        writes = try log.follow()
    }

    deinit { writes.cancel() }

    /// Makes it stand where the other engine stands.
    func start(from state: CPUState) throws {
        try writes.take { engine.noteForeignWrite($0) }
        // Nothing of that is the assistant's own.
        engine.reportWrites { _ in }
        try engine.setState(state)
    }

    /// Tells the other engine's followers what was written here.
    func reportWrites() { engine.reportWrites { engine.memory.noteMonitorWrite($0) } }
}
