import json
import pytest
from fvd.cli.main import main
@pytest.mark.parametrize("ckpt", [None,"full"])
@pytest.mark.parametrize("gan", [{"r1_weight":.1,"r1":"exact"},{"feature_source":"critic","train_feature_source":True,"r1_weight":.1,"r1":"exact"}])
def test_x(run_documents, tmp_path, gan,ckpt):
    import yaml, copy
    d = copy.deepcopy(run_documents["dmd2"])
    d["roles"]["discriminator"]={}
    d["method_config"]["gan"]=gan
    d["training"]["output_dir"]=str(tmp_path/"o"); d["training"]["enable_gradient_checkpointing_type"]=ckpt;d["training"]["max_train_steps"]=3
    (tmp_path/"r.yaml").write_text(yaml.safe_dump(d))
    assert main(["run",str(tmp_path/"r.yaml")])==0
