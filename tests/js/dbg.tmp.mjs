import { Client, read } from './lib/clients.mjs';
import { Pod } from './lib/pod.mjs';
import { until, sleep } from './lib/wait.mjs';
import { readFileSync } from 'node:fs';
const pod = await Pod.start({args:['--access-log']});
for (const u of ['ann','bob','cat']) await pod.makeUser(u);
for (let n=0;n<40;n++) {
  const db='n'+n; await pod.makeApp(db);
  const [l1,l2] = ['ann','bob'].map(u=>new Client(pod,u,db+'--me').online());
  await l1.local.put({_id:'x',text:'0',access:read('ann','bob')}); await l2.has('x','0');
  await l1.offline(); await l2.offline();
  const ann=new Client(pod,'ann',db+'--me'), bob=new Client(pod,'bob',db+'--me');
  const of=globalThis.fetch;
  const t=Date.now();
  const timer=setTimeout(()=>{console.log('HANG at',n,stage); console.log(readFileSync(pod.data+'/run/proxy.log','utf8').split('\n').slice(-12).join('\n')); process.kill(pod.child.pid,'SIGTERM'); setTimeout(()=>process.exit(1),500)},12000);
  let stage='';
  for (const [s,f] of [['a1',()=>ann.sync()],['b1',()=>bob.sync()],['ae',()=>ann.edit('x',{text:'1',access:read('ann')})],['a2',()=>ann.sync()],['b2',()=>bob.sync()],['b3',()=>bob.sync()],['a3',()=>ann.sync()]]) { stage=s; await f(); }
  clearTimeout(timer);
}
console.log('no hang'); await pod.stop(); process.exit(0);
